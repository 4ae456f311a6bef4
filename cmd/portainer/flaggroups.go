package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The titles under which help shows the flags of a command that has many, in this order.
const (
	whatIsBuilt     = "What is built"
	whereItGoes     = "Where the image goes"
	whatTheImage    = "What the image is like"
	howStepsRun     = "How steps run"
	whatIsCached    = "Cache"
	whatItNeeds     = "What a build needs, and how long it may take"
	whatBuilds      = "What builds on the agent"
	whichRegistries = "Registries"
	whatIsStaged    = "Staging and state"
	whatIsShown     = "What is shown"
)

var flagTitles = []string{
	whatIsBuilt, whereItGoes, whatTheImage, howStepsRun, whatIsCached, whatItNeeds, whatBuilds, whichRegistries, whatIsStaged, whatIsShown,
}

// flagGroups are the flags of a command by their titles.
type flagGroups map[string]*pflag.FlagSet

// of returns the flags under a title, to add to.
func (g flagGroups) of(title string) *pflag.FlagSet {
	if g[title] == nil {
		g[title] = pflag.NewFlagSet(title, pflag.ContinueOnError)
		g[title].SortFlags = false
	}
	return g[title]
}

// addTo gives cmd the flags, and a help that shows them by their titles, in lines of so
// many columns; 0 means of any length.
func (g flagGroups) addTo(cmd *cobra.Command, columns func() int) {
	cmd.Flags().SortFlags = false
	for _, title := range flagTitles {
		cmd.Flags().AddFlagSet(g.of(title))
	}
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		_, err := io.WriteString(cmd.OutOrStderr(), g.usage(cmd, columns()))
		return err
	})
}

// usage is what help says after a command's description.
func (g flagGroups) usage(cmd *cobra.Command, columns int) string {
	var text strings.Builder
	fmt.Fprintf(&text, "Usage:\n  %s\n", cmd.UseLine())
	if cmd.HasExample() {
		fmt.Fprintf(&text, "\nExamples:\n%s\n", cmd.Example)
	}
	for _, title := range flagTitles {
		if g.of(title).HasAvailableFlags() {
			fmt.Fprintf(&text, "\n%s:\n%s", title, g.of(title).FlagUsagesWrapped(columns))
		}
	}
	fmt.Fprintf(&text, "\nThe cluster, and other flags of every command:\n%s", cmd.InheritedFlags().FlagUsagesWrapped(columns))
	return text.String()
}
