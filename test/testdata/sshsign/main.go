// Command sshsign has every key of the ssh agent that SSH_AUTH_SOCK names sign its
// argument, and prints comment and signature. It also tries to take the keys out of
// the agent, which must fail.
package main

import (
	"encoding/base64"
	"fmt"
	"log"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func main() {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		log.Fatal(err)
	}
	a := agent.NewClient(conn)
	if a.RemoveAll() == nil {
		log.Fatal("the keys could be removed")
	}
	keys, err := a.List()
	if err != nil {
		log.Fatal(err)
	}
	for _, key := range keys {
		signature, err := a.Sign(key, []byte(os.Args[1]))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("signed by %s: %s\n", key.Comment, base64.StdEncoding.EncodeToString(ssh.Marshal(signature)))
	}
}
