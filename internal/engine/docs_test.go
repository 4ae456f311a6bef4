package engine

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table of docs/engines.md")

// TestTableOfDocs keeps the table of what each engine can do true.
func TestTableOfDocs(t *testing.T) {
	var table strings.Builder
	table.WriteString("| |")
	for b := range builders {
		fmt.Fprintf(&table, " %s |", b)
	}
	table.WriteString("\n|---|" + strings.Repeat("---|", int(builders)) + "\n")
	for _, a := range abilities {
		fmt.Fprintf(&table, "| %s |", a.name)
		for b := range builders {
			if slices.Contains(a.by, b) {
				table.WriteString(" yes |")
			} else {
				table.WriteString(" – |")
			}
		}
		table.WriteByte('\n')
	}

	const path, begin, end = "../../docs/engines.md", "<!-- table of abilities -->\n", "<!-- end of table -->\n"
	doc, err := os.ReadFile(path)
	require.NoError(t, err)
	head, rest, ok := bytes.Cut(doc, []byte(begin))
	require.True(t, ok, "%s has no line %q", path, begin)
	old, tail, ok := bytes.Cut(rest, []byte(end))
	require.True(t, ok, "%s has no line %q", path, end)
	if *update {
		require.NoError(t, os.WriteFile(path, slices.Concat(head, []byte(begin), []byte(table.String()), []byte(end), tail), 0o644))
		return
	}
	require.Equal(t, table.String(), string(old), "go test ./internal/engine -run TestTableOfDocs -update writes it")
}
