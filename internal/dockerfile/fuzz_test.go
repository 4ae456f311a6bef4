package dockerfile_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/org/portainer/internal/dockerfile"
)

// FuzzParse checks that no text makes the package panic, that every error says
// where, and that Render only blanks and inserts.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "FROM scratch", "\ufeffFROM a\r\nMEM 1\r\n", "# escape=`\nFROM `\n a\n", "# syntax=x/y\nz",
		"ARG A=b\nFROM ${A:-c} AS d\nCOPY --from=d <<E <<-\"F\" /\nE\nF\n",
		"FROM a\nRUN --mount=type=bind,\"from=b\",src=$X \\\n# portainer: cpus=1\n\n y\n",
		"FROM a\nONBUILD COPY [\"a\", \"b\"]\nENV A=$B C='d'\nCOPY $A /\n", "REPOSITORY \\\n# x\na/b\nFROM x",
		"FROM a\nCOPY --from=\\b --from -- x y\n", "FROM \"a b\"\nFROM $",
	} {
		f.Add([]byte(seed), "reg:1", "A", "v")
	}
	f.Fuzz(func(t *testing.T, text []byte, from, arg, value string) {
		file, err := dockerfile.Parse("F", text)
		if err != nil {
			var e *dockerfile.Error
			if !errors.As(err, &e) {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		if file, err = file.With(dockerfile.Options{Args: map[string]string{arg: value}}); err != nil {
			return
		}
		file.Sources()
		file.Bases()
		file.UsesContext()
		if _, err := file.TargetSources(""); err != nil {
			t.Fatal(err)
		}
		plain, err := file.Render("")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(plain, []byte("\n")) != bytes.Count(text, []byte("\n")) {
			t.Fatalf("line count changed: %q → %q", text, plain)
		}
		if bytes.ContainsAny([]byte(from), "\n\r") {
			return
		}
		rewritten, err := file.Render(from)
		if err != nil {
			t.Fatal(err)
		}
		if !isSubsequence(plain, rewritten) {
			t.Fatalf("bytes lost: %q → %q", plain, rewritten)
		}
	})
}

func isSubsequence(short, long []byte) bool {
	for _, c := range long {
		if len(short) > 0 && short[0] == c {
			short = short[1:]
		}
	}
	return len(short) == 0
}
