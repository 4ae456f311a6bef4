package main

// The kinds of --staging-uri. A program that embeds the library links those it
// wants.
import (
	_ "gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/s3blob"

	_ "github.com/org/portainer/internal/hdfsblob"
)
