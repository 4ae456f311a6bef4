package testmesos_test

import (
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"
)

// Frameworks that have something on an agent are asked to do without it, also when
// they want no offers.
func TestInverseOffers(t *testing.T) {
	c := start(t, fast(2))
	f := subscribed(t, c, nil)
	agent := f.launch("t1", "run").AgentID
	f.call(&scheduler.Call{Type: scheduler.Call_SUPPRESS})
	busy, idle := c.Agents()[0], c.Agents()[1]
	if busy.ID() != agent.Value {
		busy, idle = idle, busy
	}
	begin := time.Now().Add(time.Hour)
	busy.Maintain(begin, time.Minute)
	idle.Maintain(begin, time.Minute)
	asked := f.inverse()
	require.Equal(t, agent, *asked.AgentID)
	require.Equal(t, *f.info.ID, asked.FrameworkID)
	require.Equal(t, begin.UnixNano(), asked.Unavailability.Start.Nanoseconds)
	require.Equal(t, time.Minute.Nanoseconds(), asked.Unavailability.Duration.Nanoseconds)
	require.NotZero(t, asked.URL.Address.Port)
	require.Empty(t, asked.Resources)
	f.none(scheduler.Event_INVERSE_OFFERS, 100*time.Millisecond)
	require.Empty(t, busy.MaintenanceAnswers())

	f.answer(asked, false, 0)
	again := f.inverse()
	require.NotEqual(t, asked.OfferID, again.OfferID)
	require.Equal(t, map[string]bool{f.info.ID.Value: false}, busy.MaintenanceAnswers())
	f.answer(again, true, 3600)
	f.none(scheduler.Event_INVERSE_OFFERS, 100*time.Millisecond)
	require.Equal(t, map[string]bool{f.info.ID.Value: true}, busy.MaintenanceAnswers())

	// Another plan is another question.
	busy.Maintain(begin.Add(time.Hour), 0)
	third := f.inverse()
	require.Nil(t, third.Unavailability.Duration)
	require.Empty(t, busy.MaintenanceAnswers())
	busy.Maintain(time.Time{}, 0)
	require.Equal(t, third.OfferID, f.expect(scheduler.Event_RESCIND_INVERSE_OFFER).RescindInverseOffer.InverseOfferID)
	require.Nil(t, busy.MaintenanceAnswers())
}

func TestInverseOfferIsRescindedWithItsAgent(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	f.launch("t1", "run")
	a := c.Agents()[0]
	a.Maintain(time.Now().Add(time.Hour), 0)
	asked := f.inverse()
	a.Lose()
	require.Equal(t, asked.OfferID, f.expect(scheduler.Event_RESCIND_INVERSE_OFFER).RescindInverseOffer.InverseOfferID)
}

// inverse waits for one inverse offer.
func (f *framework) inverse() mesos.InverseOffer {
	f.t.Helper()
	offers := f.expect(scheduler.Event_INVERSE_OFFERS).InverseOffers.InverseOffers
	require.Len(f.t, offers, 1)
	return offers[0]
}

// answer accepts or declines an inverse offer.
func (f *framework) answer(o mesos.InverseOffer, accept bool, refuse float64) {
	f.t.Helper()
	ids, filters := []mesos.OfferID{o.OfferID}, &mesos.Filters{RefuseSeconds: &refuse}
	if accept {
		f.call(&scheduler.Call{
			Type:                scheduler.Call_ACCEPT_INVERSE_OFFERS,
			AcceptInverseOffers: &scheduler.Call_AcceptInverseOffers{InverseOfferIDs: ids, Filters: filters},
		})
		return
	}
	f.call(&scheduler.Call{
		Type:                 scheduler.Call_DECLINE_INVERSE_OFFERS,
		DeclineInverseOffers: &scheduler.Call_DeclineInverseOffers{InverseOfferIDs: ids, Filters: filters},
	})
}
