package engine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestStepErrors(t *testing.T) {
	const digest = "sha256:8aa0a8acc7719109546a67bf28ee0ad8a3c8ce3ba689c7641da28750edd98139"
	tests := []struct {
		name, msg, step string
		want            portainer.Class
	}{
		{"a command", "The command '/bin/sh -c false' returned a non-zero code: 1", "RUN false", portainer.ClassUser},
		{"a missing source", "COPY failed: file not found in build context or excluded by .dockerignore: stat x: file does not exist", "COPY x /", portainer.ClassUser},
		{"a full disk", "failed to copy files: write /x: no space left on device", "COPY x /", portainer.ClassDisk},
		{"a cached image that another build removed", `unable to find image "` + digest + `"`, "COPY number /", portainer.ClassLost},
		{"the same from the daemon", `Error response from daemon: unable to find image "` + digest + `"`, "COPY number /", portainer.ClassLost},
		{"a base that another build removed", "No such image: " + digest, "RUN true", portainer.ClassLost},
		{"a base that is not there", "No such image: " + digest, "FROM " + digest, portainer.ClassUser},
		{"a command that says the same", `The command '/bin/sh -c echo unable to find image "` + digest + `"; exit 1' returned a non-zero code: 1`, "RUN", portainer.ClassUser},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := (&job{}).stepError(tt.msg, nil, tt.step, 2)
			require.Equal(t, tt.want, got.Class, got)
		})
	}
}
