package main

// The kinds of --staging-uri. A program that embeds the library links those it
// wants.
import (
	_ "gocloud.dev/blob/azureblob" // azblob://
	_ "gocloud.dev/blob/fileblob"  // file://
	_ "gocloud.dev/blob/gcsblob"   // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://

	_ "github.com/org/portainer/internal/hdfsblob" // hdfs://, webhdfs://
)
