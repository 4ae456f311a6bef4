package portainer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

// sentinels are what callers test errors for.
var sentinels = []error{
	portainer.ErrInvalid, portainer.ErrStopped, portainer.ErrRejected, portainer.ErrUnreachable, portainer.ErrFailed,
	portainer.ErrLost, portainer.ErrStaging, context.Canceled, context.DeadlineExceeded,
}

func TestBuildErrorSentinels(t *testing.T) {
	tests := map[portainer.Class]error{
		portainer.ClassUser:      portainer.ErrFailed,
		portainer.ClassInvalid:   portainer.ErrInvalid,
		portainer.ClassAuth:      portainer.ErrFailed,
		portainer.ClassRegistry:  portainer.ErrFailed,
		portainer.ClassOOM:       portainer.ErrFailed,
		portainer.ClassDisk:      portainer.ErrFailed,
		portainer.ClassTimeout:   context.DeadlineExceeded,
		portainer.ClassLost:      portainer.ErrLost,
		portainer.ClassLaunch:    portainer.ErrLost,
		portainer.ClassPreempted: portainer.ErrLost,
		portainer.ClassStaging:   portainer.ErrStaging,
		portainer.ClassContext:   portainer.ErrFailed,
		portainer.ClassCancelled: context.Canceled,
		"of a later release":     portainer.ErrFailed,
	}
	cause := errors.New("the cause")
	for class, want := range tests {
		t.Run(string(class), func(t *testing.T) {
			for _, inner := range []error{nil, cause, want, fmt.Errorf("wrapped: %w", want)} {
				err := error(&portainer.BuildError{Class: class, Err: inner})
				for _, sentinel := range sentinels {
					require.Equal(t, errors.Is(want, sentinel), errors.Is(err, sentinel), "%v", sentinel)
				}
				if inner != nil {
					require.ErrorIs(t, err, inner)
				}
				require.NotEmpty(t, err.Error())
			}
			// Why it was cancelled is found as well as that it was.
			err := error(&portainer.BuildError{Class: class, Err: portainer.ErrStopped})
			require.ErrorIs(t, err, want)
			require.ErrorIs(t, err, portainer.ErrStopped)
		})
	}
}

func TestBuildErrorRetriable(t *testing.T) {
	for class, want := range map[portainer.Class]bool{
		portainer.ClassLost: true, portainer.ClassLaunch: true, portainer.ClassPreempted: true,
		portainer.ClassUser: false, portainer.ClassInvalid: false, portainer.ClassAuth: false, portainer.ClassRegistry: false,
		portainer.ClassOOM: false, portainer.ClassDisk: false, portainer.ClassTimeout: false, portainer.ClassStaging: false, portainer.ClassContext: false,
		portainer.ClassCancelled: false, "of a later release": false,
	} {
		err := &portainer.BuildError{Class: class, Phase: portainer.PhaseBuild}
		require.Equal(t, want, err.Retriable(), class)
	}
	require.True(t, (&portainer.BuildError{Class: portainer.ClassDisk, Phase: portainer.PhaseLaunch}).Retriable())
}

func TestBuildErrorMessage(t *testing.T) {
	cause := errors.New("exit code: 2")
	for _, tt := range []struct {
		want string
		err  portainer.BuildError
	}{
		{"build failed", portainer.BuildError{Class: portainer.ClassUser}},
		{"exit code: 2", portainer.BuildError{Err: cause}},
		{"registry.example/app: exit code: 2", portainer.BuildError{Image: "registry.example/app", File: "app/Dockerfile", Err: cause}},
		{"app/Dockerfile: exit code: 2", portainer.BuildError{File: "app/Dockerfile", Err: cause}},
		{
			"app/Dockerfile:12: RUN make: exit code: 2 (attempt 2 on host7)",
			portainer.BuildError{
				ID: "b1", Image: "registry.example/app", File: "app/Dockerfile", Line: 12, Step: "RUN make", Err: cause,
				Phase: portainer.PhaseBuild, Class: portainer.ClassUser, Agent: "S1", Hostname: "host7", Attempt: 2,
			},
		},
		{"exit code: 2 (attempt 1 on S1)", portainer.BuildError{Err: cause, Agent: "S1", Attempt: 1}},
	} {
		require.Equal(t, tt.want, tt.err.Error())
	}
}
