// Package testmesos runs Mesos masters and agents inside this process. They
// speak Mesos's real v1 HTTP APIs over loopback TCP, in JSON and protobuf, and
// the agents launch real executor processes.
//
//	c, err := testmesos.Start(testmesos.Config{
//		Agents: []testmesos.AgentConfig{{Resources: "cpus:4;mem:8192;disk:20000;ports:[31000-32000]"}},
//	})
//	// …
//	defer c.Close()
//	subscribeAt(c.Master()) // http://127.0.0.1:PORT
//
// # What it imitates
//
// The scheduler API: the order and the texts of all HTTP checks, refusals as
// ERROR events, stream ids, framework failover and removal, several roles,
// offers by dominant share, filters, SUPPRESS and REVIVE, inverse offers for
// planned maintenance, the validation of ACCEPT, status updates that are sent
// again until they are acknowledged, reconciliation, redirects to the leader.
//
// The executor API and the life of an executor: its environment and nothing
// else, its sandbox, the fetcher, the time it has to subscribe, the updates that
// its end makes, SHUTDOWN and the grace after it, recovery from the restart of an
// agent. Tasks that have only a CommandInfo run in a built-in executor.
//
// The agent's files: /files/read, browse and download, READ_FILE and LIST_FILES.
//
// How far it can be trusted shows in the directory mesosprobe: conversations
// recorded from Apache Mesos 1.12 must come out the same here.
//
// # What it does not
//
// Executors run as processes of this user: no isolation, no limits on
// resources, no other users, no images. Only an agent with a docker client
// (AgentConfig.Docker) runs executors in containers; the command line is that of
// Mesos. There is no authorization, no quota and no weights. Of the operations in
// ACCEPT only LAUNCH and LAUNCH_GROUP have an effect, and there is no built-in
// executor of type DEFAULT. There are no checks and health checks, no resource
// providers, and no garbage collection of sandboxes. The fetcher has no cache and
// no Hadoop client. Masters do not find each other through ZooKeeper: a test says
// who leads, and Master.Info is what it may write there. Messages between masters
// and agents are calls inside this process.
//
// # Faults
//
// Cluster.Interfere drops, delays, duplicates or breaks single messages.
// Masters can be killed, restarted and elected, agents lost, restarted and
// drained; see the methods of Cluster, Master and Agent.
package testmesos
