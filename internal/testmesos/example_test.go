package testmesos_test

import (
	"fmt"
	"net/http"

	"github.com/org/portainer/internal/testmesos"
)

func ExampleStart() {
	c, err := testmesos.Start(testmesos.Config{
		Agents: []testmesos.AgentConfig{{Resources: "cpus:4;mem:8192"}, {Resources: "cpus:2;mem:4096", Attributes: "rack:a"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	// The leader tells where it is, as a real one does.
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Get(c.Master() + "/redirect")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode, "http:"+resp.Header.Get("Location") == c.Master(), len(c.Agents()))
	// Output: 307 true 2
}
