package master

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLeadingIsTheSmallestSequence(t *testing.T) {
	tests := []struct {
		name     string
		children []string
		want     string
	}{
		{"none", nil, ""},
		{"other children only", []string{"log_replicas", "info_0000000000", "json.info_", "json.info_x", "json.info_-1"}, ""},
		{"smallest", []string{"json.info_0000000010", "json.info_0000000009", "info_0000000001", "log_replicas"}, "json.info_0000000009"},
		{"beyond ten digits", []string{"json.info_10000000000", "json.info_9999999999"}, "json.info_9999999999"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			node, ok := leading(tt.children)
			require.Equal(t, tt.want, node)
			require.Equal(t, tt.want != "", ok)
		})
	}
}

func TestDecodeMasterInfo(t *testing.T) {
	tests := []struct {
		name, data string
		want       []string
		err        string
	}{
		{
			name: "as a master writes it",
			data: `{"address":{"hostname":"127.0.0.1","ip":"127.0.0.1","port":6062},"capabilities":[{"type":"AGENT_UPDATE"}],"hostname":"127.0.0.1","id":"x","ip":16777343,"pid":"master@127.0.0.1:6062","port":6062,"version":"1.12.0"}`,
			want: []string{"//127.0.0.1:6062"},
		},
		{
			name: "name and address",
			data: `{"address":{"hostname":"m1.example","ip":"10.0.0.1","port":5050}}`,
			want: []string{"//m1.example:5050", "//10.0.0.1:5050"},
		},
		{
			name: "unspecified address",
			data: `{"address":{"hostname":"m1","ip":"0.0.0.0","port":5050}}`,
			want: []string{"//m1:5050"},
		},
		{name: "no address", data: `{"id":"x"}`, err: "MasterInfo without an address: port 0"},
		{name: "no host", data: `{"address":{"port":1}}`, err: "MasterInfo without an address"},
		{name: "no JSON", data: `x`, err: "not a MasterInfo: invalid character 'x' looking for beginning of value"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			urls, err := decodeMasterInfo([]byte(tt.data))
			if tt.err != "" {
				require.EqualError(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			var got []string
			for _, u := range urls {
				got = append(got, u.String())
			}
			require.Equal(t, tt.want, got)
		})
	}
}

func TestHostsGoRoundAndTellWhenAllFailed(t *testing.T) {
	h := &hosts{}
	require.NoError(t, h.Init([]string{"a", "b"}))
	require.Equal(t, 2, h.Len())
	type step struct {
		server string
		retry  bool
	}
	next := func() step {
		server, retry := h.Next()
		return step{server, retry}
	}
	require.Equal(t, step{"a", false}, next())
	require.Equal(t, step{"b", false}, next())
	require.Equal(t, step{"a", true}, next())
	h.Connected()
	require.Equal(t, step{"b", false}, next())
	require.Equal(t, step{"a", false}, next())
	require.Equal(t, step{"b", true}, next())
}
