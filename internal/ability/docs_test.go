package ability_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/ability"
)

var update = flag.Bool("update", false, "write the table of docs/engines.md")

// TestTableOfDocs keeps the table of what each engine can do true.
func TestTableOfDocs(t *testing.T) {
	var table strings.Builder
	table.WriteString("| |")
	for b := range ability.Builders {
		fmt.Fprintf(&table, " %s |", b)
	}
	table.WriteString("\n|---|" + strings.Repeat("---|", int(ability.Builders)) + "\n")
	for _, a := range ability.Table {
		fmt.Fprintf(&table, "| %s |", a.Name)
		for b := range ability.Builders {
			if slices.Contains(a.By, b) {
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
	require.Equal(t, table.String(), string(old), "go test ./internal/ability -run TestTableOfDocs -update writes it")
}
