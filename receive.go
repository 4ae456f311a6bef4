package portainer

import (
	"fmt"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/org/portainer/internal/logrelay"
	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/sshforward"
	"github.com/org/portainer/internal/wire"
)

// handle takes an event of the master.
func (l *loop) handle(ev schedapi.Event) {
	now := time.Now()
	log := l.f.cfg.Logger
	if ev.Event == nil {
		// The client has warned of it.
		l.ledger.disconnected(ev.Disconnected)
		return
	}
	switch ev.Type {
	case scheduler.Event_SUBSCRIBED:
		if err := l.adopt(ev.Subscribed.FrameworkID.Value); err != nil {
			l.fatal = err
			return
		}
		log.Info("subscribed", "framework", l.frameworkID)
		l.ledger.subscribed(now)
	case scheduler.Event_OFFERS:
		l.raw = make(map[OfferID]*mesos.Offer, len(ev.Offers.Offers))
		offers := make([]Offer, len(ev.Offers.Offers))
		for i := range ev.Offers.Offers {
			o := &ev.Offers.Offers[i]
			offers[i] = fromMesos(o, l.f.cfg.TLS != nil)
			l.raw[offers[i].ID] = o
		}
		log.Debug("offers", "count", len(offers))
		l.ledger.offers(now, offers)
	case scheduler.Event_INVERSE_OFFERS:
		l.ledger.inverseOffers(now, inverseFromMesos(ev.InverseOffers.InverseOffers))
	case scheduler.Event_UPDATE:
		u := updateFromMesos(&ev.Update.Status)
		log.Debug("status update", "task", u.task, "state", u.state, "reason", u.reason, "message", u.message)
		l.ledger.update(now, u)
		if ask, err := seal.DecodeAsk(u.data); err == nil {
			l.answerSecrets(ask, u.task, u.agent)
		}
	case scheduler.Event_MESSAGE:
		l.message(ev.Message)
	case scheduler.Event_FAILURE:
		log.Debug("failure", "agent", ev.Failure.GetAgentID().GetValue(), "executor", ev.Failure.GetExecutorID().GetValue())
	case scheduler.Event_RESCIND, scheduler.Event_RESCIND_INVERSE_OFFER, scheduler.Event_HEARTBEAT:
		// No offer is held, so there is none to take back.
	default:
		log.Debug("event passed over", "type", ev.Type.String())
	}
}

// adopt makes id the framework's, durably before anything is done under it: an id
// that is lost is a framework whose tasks nobody can find again.
func (l *loop) adopt(id string) error {
	if l.f.state != nil && id != l.frameworkID {
		if err := l.f.state.setFramework(id); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	l.frameworkID = id
	return nil
}

// message takes what an executor says: a piece of its log, that it wants to push, to
// have secrets or to use an ssh agent, or that its log has grown, of which whoever
// follows the log is told.
func (l *loop) message(m *scheduler.Event_Message) {
	if chunk, err := logrelay.DecodeChunk(m.Data); err == nil {
		l.relayed(chunk, m.ExecutorID.Value, AgentID(m.AgentID.Value))
		return
	}
	if ask, err := wire.DecodePushAsk(m.Data); err == nil {
		l.ledger.asked(time.Now(), m.ExecutorID.Value, ask)
		return
	}
	if ask, err := seal.DecodeAsk(m.Data); err == nil {
		l.answerSecrets(ask, m.ExecutorID.Value, AgentID(m.AgentID.Value))
		return
	}
	if ask, err := sshforward.DecodeAsk(m.Data); err == nil {
		l.answerSSH(ask, m.ExecutorID.Value, AgentID(m.AgentID.Value))
		return
	}
	at := l.ledger.tasks[m.ExecutorID.Value]
	if at == nil {
		return
	}
	hint, err := wire.DecodeHint(m.Data)
	if err != nil {
		l.f.cfg.Logger.Debug("message passed over", "executor", m.ExecutorID.Value, "err", err)
		return
	}
	if hint.Waiting {
		l.logAwaited(at)
	}
	if box := l.boxes[at.build.id]; box != nil {
		box.poke()
	}
}

func inverseFromMesos(offers []mesos.InverseOffer) []inverseOffer {
	asked := make([]inverseOffer, len(offers))
	for i := range offers {
		o := &offers[i]
		asked[i] = inverseOffer{
			id: OfferID(o.OfferID.Value), agent: AgentID(o.GetAgentID().GetValue()), start: time.Unix(0, o.Unavailability.Start.Nanoseconds),
		}
	}
	return asked
}

// updateFromMesos converts a status.
func updateFromMesos(s *mesos.TaskStatus) update {
	u := update{
		task:    s.TaskID.Value,
		agent:   AgentID(s.GetAgentID().GetValue()),
		state:   s.GetState().String(),
		message: s.GetMessage(),
		data:    s.Data,
		uuid:    s.UUID,
	}
	if s.Reason != nil {
		u.reason = s.Reason.String()
	}
	if s.Source != nil {
		u.source = s.Source.String()
	}
	return u
}
