package dockerfile

import (
	"fmt"
	"strings"
)

// didYouMean adds to err the one of options that is nearest to word, if any is
// near.
func didYouMean(err error, word string, options []string) error {
	best, distance := "", 3
	for _, o := range options {
		if d := editDistance(strings.ToLower(word), strings.ToLower(o)); d < distance {
			best, distance = o, d
		}
	}
	if best == "" {
		return err
	}
	if word == strings.ToUpper(word) {
		best = strings.ToUpper(best)
	}
	return fmt.Errorf("%w (did you mean %s?)", err, best)
}

// editDistance is how many letters must be changed, added or removed to make a of b.
func editDistance(a, b string) int {
	if d := len(a) - len(b); d > 3 || d < -3 {
		return 4 // farther than anyone asks
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
