package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// TestEveryFlagIsDocumented keeps docs/operating.md true.
func TestEveryFlagIsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "operating.md"))
	require.NoError(t, err)
	root := newRoot(invocation{})
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		check := func(f *pflag.Flag) {
			require.Contains(t, string(text), "`--"+f.Name+"`", "flag of %s", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(check)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, title := range flagTitles {
		require.Contains(t, string(text), "\n### "+title+"\n")
	}
}
