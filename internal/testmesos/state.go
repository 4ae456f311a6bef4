package testmesos

import "net/http"

func (m *master) serveState(w http.ResponseWriter) { writeJSON(w, []byte("{}")) }
func (m *master) servePage(w http.ResponseWriter)  { writeJSON(w, []byte("{}")) }
func (a *Agent) serveState(w http.ResponseWriter)  { writeJSON(w, []byte("{}")) }
