package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestPack(t *testing.T) {
	offer := func(id string, cpus float64, kind string) portainer.Offer {
		return portainer.Offer{
			ID: portainer.OfferID(id), Agent: portainer.AgentID("agent-" + id),
			Resources:  portainer.Resources{CPUs: cpus, MemMB: 4096},
			Attributes: map[string]string{"kind": kind},
		}
	}
	build := func(id, image string, avoid ...portainer.AgentID) portainer.Pending {
		return portainer.Pending{
			ID: portainer.BuildID(id), Image: image, Avoid: avoid,
			Resources: portainer.Resources{CPUs: 1, MemMB: 512},
		}
	}
	tests := []struct {
		name   string
		offers []portainer.Offer
		builds []portainer.Pending
		want   []portainer.Placement
	}{
		{
			"the fuller agent is filled first",
			[]portainer.Offer{offer("big", 8, ""), offer("small", 2, "")},
			[]portainer.Pending{build("1", "r/a"), build("2", "r/b"), build("3", "r/c")},
			[]portainer.Placement{{Build: "1", Offer: "small"}, {Build: "2", Offer: "small"}, {Build: "3", Offer: "big"}},
		},
		{
			"gpu images and gpu agents keep to themselves",
			[]portainer.Offer{offer("gpu", 8, "gpu"), offer("plain", 8, "")},
			[]portainer.Pending{build("1", "r/gpu/train"), build("2", "r/a")},
			[]portainer.Placement{{Build: "1", Offer: "gpu"}, {Build: "2", Offer: "plain"}},
		},
		{
			"an agent that lost the build is avoided",
			[]portainer.Offer{offer("only", 8, "")},
			[]portainer.Pending{build("1", "r/a", "agent-only")},
			nil,
		},
		{
			"nothing goes where there is no room",
			[]portainer.Offer{offer("tiny", 0.5, "")},
			[]portainer.Pending{build("1", "r/a")},
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, pack(tt.offers, tt.builds))
		})
	}
}
