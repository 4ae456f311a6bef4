package portainer

import (
	"fmt"
	"time"
)

// An inverseOffer is the master's question whether an agent, whose maintenance is
// planned, can be done without (mesos docs/maintenance.md).
type inverseOffer struct {
	id    OfferID
	agent AgentID
	start time.Time // of the maintenance
}

// refuseInverse is for how long the same question need not come again. A change of
// the plan brings it at once.
const refuseInverse = time.Hour

// inverseOffers agrees to all maintenance, since no build needs its agent: what is
// under way goes on, and is built again elsewhere if the agent goes before its end.
// Nothing new starts there, as the agent's offers tell of the plan as well.
func (l *ledger) inverseOffers(now time.Time, asked []inverseOffer) {
	agreed := make([]OfferID, len(asked))
	for i, o := range asked {
		agreed[i] = o.id
		for _, at := range sortedAttempts(l.tasks) {
			if at.agent != o.agent || at.abandoned || at.maintenance.Equal(o.start) {
				continue
			}
			at.maintenance = o.start
			l.notice(at.build, notice{event: infoEvent(now, at, fmt.Sprintf(
				"%s goes down for maintenance at %s: if the build is not done by then, it starts again elsewhere",
				at.hostname, o.start.UTC().Format(time.RFC3339)))})
		}
	}
	if len(agreed) > 0 {
		l.do(actYield{agreed, refuseInverse})
	}
}
