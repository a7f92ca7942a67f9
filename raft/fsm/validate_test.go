package fsm_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

func many(n int) (list []fsm.HiveState) {
	for i := range n {
		list = append(list, fsm.HiveState{Hive: hive(fmt.Sprint("h", i), 1, "")})
	}
	return list
}

func TestValidate(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", fsm.MaxIDBytes+1)
	with := func(change func(*raftv1.SyncHive)) *raftv1.Command {
		c := fsm.SyncHive(hive("h1", 1, ""), []core.Worker{worker("h1", "w1", wReady, "n")})
		change(c.GetSyncHive())
		return c
	}
	must.NoError(t, fsm.Validate(with(func(*raftv1.SyncHive) {})))
	initWith := func(change func(*raftv1.InitCluster)) *raftv1.Command {
		c := fsm.InitCluster(cluster("c"), new(apiToken("t")), new(node("n", "n")))
		change(c.GetInitCluster())
		return c
	}
	must.NoError(t, fsm.Validate(initWith(func(*raftv1.InitCluster) {})))
	nodeWith := func(change func(*raftv1.Node)) *raftv1.Command {
		c := fsm.PutNode(node("n", "n"), "")
		change(c.GetPutNode().GetNode())
		return c
	}
	must.NoError(t, fsm.Validate(nodeWith(func(*raftv1.Node) {})))
	tokenWith := func(change func(*raftv1.Token)) *raftv1.Command {
		c := fsm.PutToken(apiToken("t"))
		change(c.GetPutToken().GetToken())
		return c
	}
	must.NoError(t, fsm.Validate(tokenWith(func(*raftv1.Token) {})))
	must.NoError(t, fsm.Validate(fsm.PutToken(joinToken("j"))))
	must.NoError(t, fsm.Validate(fsm.SyncHives(many(fsm.MaxHivesPerCommand))))
	// The largest sizes, times and lengths that are allowed.
	must.NoError(t, fsm.Validate(nodeWith(func(n *raftv1.Node) { n.CertificateExpiresUnix = 253402300799 })))
	must.NoError(t, fsm.Validate(nodeWith(func(n *raftv1.Node) { n.RpcAddress = "h:65535" })))
	must.NoError(t, fsm.Validate(tokenWith(func(t *raftv1.Token) { t.CreatedUnix, t.TtlSeconds = 0, 100*366*24*60*60 })))
	uses, types := &raftv1.TouchTokens{}, []string{}
	for i := range fsm.MaxTokenUses {
		uses.Uses = append(uses.Uses, &raftv1.TokenUse{Token: fmt.Sprint("t", i)})
	}
	for i := range fsm.MaxWorkerTypes {
		types = append(types, fmt.Sprint("type", i))
	}
	must.NoError(t, fsm.Validate(&raftv1.Command{Op: &raftv1.Command_TouchTokens{TouchTokens: uses}}))
	must.NoError(t, fsm.Validate(with(func(s *raftv1.SyncHive) { s.Hive.WorkerTypes = types })))
	for name, tt := range map[string]struct {
		cmd  *raftv1.Command
		kind core.Kind
	}{
		"less memory than none":         {with(func(s *raftv1.SyncHive) { s.Hive.Devices = []*raftv1.Device{{Id: "cpu", TotalBytes: -1}} }), core.Invalid},
		"a start without a model":       {fsm.ClaimStart(state.Start{Hive: "h", Served: "m", Request: "r"}, ""), core.Invalid},
		"a start that replaces itself":  {fsm.ClaimStart(state.Start{Model: "m", Hive: "h", Served: "m", Request: "r"}, "r"), core.Invalid},
		"no uses of tokens":             {&raftv1.Command{Op: &raftv1.Command_TouchTokens{TouchTokens: &raftv1.TouchTokens{}}}, core.TooLarge},
		"too many uses of tokens":       {&raftv1.Command{Op: &raftv1.Command_TouchTokens{TouchTokens: &raftv1.TouchTokens{Uses: slices.Repeat([]*raftv1.TokenUse{{Token: "t"}}, fsm.MaxTokenUses+1)}}}, core.TooLarge},
		"a token with an older secret":  {tokenWith(func(t *raftv1.Token) { t.PreviousSecretHash = []byte{1} }), core.Invalid},
		"a token of too many models":    {tokenWith(func(t *raftv1.Token) { t.Models = slices.Repeat([]string{"m"}, core.MaxTokenModels+1) }), core.TooLarge},
		"a port that is none":           {nodeWith(func(n *raftv1.Node) { n.RpcAddress = "h:65536" }), core.Invalid},
		"an end after the year 9999":    {nodeWith(func(n *raftv1.Node) { n.CertificateExpiresUnix = 253402300800 }), core.Invalid},
		"nothing":                       {&raftv1.Command{}, core.Invalid},
		"a long request id":             {&raftv1.Command{RequestId: long, Op: fsm.RemoveHive("h").GetOp()}, core.Invalid},
		"no hive":                       {with(func(s *raftv1.SyncHive) { s.Hive = nil }), core.Invalid},
		"a long hive id":                {fsm.RemoveHive(long), core.Invalid},
		"a control character":           {fsm.RetireWorker("", "a\x00b"), core.Invalid},
		"no UTF-8":                      {fsm.RetireWorker("", "a\xff"), core.Invalid},
		"an unknown status":             {fsm.SetHiveStatus("h", "odd", 0), core.Invalid},
		"a hive says it's down":         {with(func(s *raftv1.SyncHive) { s.Hive.Status = "down" }), core.Invalid},
		"another hive's worker":         {with(func(s *raftv1.SyncHive) { s.Workers[0].Hive = "h2" }), core.Invalid},
		"a worker twice":                {with(func(s *raftv1.SyncHive) { s.Workers = append(s.Workers, s.Workers[0]) }), core.Invalid},
		"an unknown state":              {with(func(s *raftv1.SyncHive) { s.Workers[0].State = "" }), core.Invalid},
		"a malformed capability":        {with(func(s *raftv1.SyncHive) { s.Workers[0].Capabilities = []string{"chat tools"} }), core.Invalid},
		"many capabilities":             {with(func(s *raftv1.SyncHive) { s.Workers[0].Capabilities = slices.Repeat([]string{"chat"}, 33) }), core.Invalid},
		"negative slots":                {with(func(s *raftv1.SyncHive) { s.Workers[0].Slots = -1 }), core.Invalid},
		"a long device problem":         {with(func(s *raftv1.SyncHive) { s.Hive.Devices[0].Problem = strings.Repeat("x", 2000) }), core.Invalid},
		"no hives":                      {fsm.SyncHives(nil), core.Invalid},
		"a hive twice":                  {fsm.SyncHives([]fsm.HiveState{{Hive: hive("h1", 1, "")}, {Hive: hive("h1", 2, "")}}), core.Invalid},
		"a wrong hive in a batch":       {fsm.SyncHives([]fsm.HiveState{{Hive: hive("h1", 1, "")}, {}}), core.Invalid},
		"too many hives":                {fsm.SyncHives(many(fsm.MaxHivesPerCommand + 1)), core.TooLarge},
		"a hive that says it drains":    {with(func(s *raftv1.SyncHive) { s.Hive.Draining = true }), core.Invalid},
		"an address without a port":     {with(func(s *raftv1.SyncHive) { s.Hive.RpcAddress = "h" }), core.Invalid},
		"an address without a host":     {with(func(s *raftv1.SyncHive) { s.Hive.RpcAddress = ":1" }), core.Invalid},
		"an address with a high port":   {with(func(s *raftv1.SyncHive) { s.Hive.RpcAddress = "h:70000" }), core.Invalid},
		"an address with a port name":   {with(func(s *raftv1.SyncHive) { s.Hive.RpcAddress = "h:http" }), core.Invalid},
		"draining without an id":        {fsm.SetHiveDraining("", true), core.Invalid},
		"a cluster without an id":       {fsm.InitCluster(core.Cluster{}, nil, nil), core.Invalid},
		"a cluster with a long name":    {initWith(func(o *raftv1.InitCluster) { o.Cluster.Name = strings.Repeat("x", 256) }), core.Invalid},
		"a large CA":                    {initWith(func(o *raftv1.InitCluster) { o.Cluster.CaCertificates = make([]byte, 1<<17) }), core.TooLarge},
		"a large CA key":                {initWith(func(o *raftv1.InitCluster) { o.Cluster.SealedCaKey = make([]byte, 1<<17) }), core.TooLarge},
		"large gossip keys":             {initWith(func(o *raftv1.InitCluster) { o.Cluster.SealedGossipKeys = make([]byte, 1<<17) }), core.TooLarge},
		"a cluster with a wrong token":  {initWith(func(o *raftv1.InitCluster) { o.Token.Id = "" }), core.Invalid},
		"a cluster with a wrong node":   {initWith(func(o *raftv1.InitCluster) { o.Node.Name = "" }), core.Invalid},
		"a node without an id":          {nodeWith(func(n *raftv1.Node) { n.Id = "" }), core.Invalid},
		"a node without a name":         {nodeWith(func(n *raftv1.Node) { n.Name = "" }), core.Invalid},
		"a node with a long name":       {nodeWith(func(n *raftv1.Node) { n.Name = strings.Repeat("x", 256) }), core.Invalid},
		"a node without a role":         {nodeWith(func(n *raftv1.Node) { n.Roles = nil }), core.Invalid},
		"a node with an unknown role":   {nodeWith(func(n *raftv1.Node) { n.Roles = []string{"king"} }), core.Invalid},
		"a node with a role twice":      {nodeWith(func(n *raftv1.Node) { n.Roles = []string{"hive", "hive"} }), core.Invalid},
		"a node with a wrong address":   {nodeWith(func(n *raftv1.Node) { n.RpcAddress = "h:0" }), core.Invalid},
		"a node with a short key hash":  {nodeWith(func(n *raftv1.Node) { n.KeyHash = n.KeyHash[1:] }), core.Invalid},
		"a node of the far past":        {nodeWith(func(n *raftv1.Node) { n.CertificateExpiresUnix = -1 }), core.Invalid},
		"a node of the far future":      {nodeWith(func(n *raftv1.Node) { n.CertificateExpiresUnix = 1 << 60 }), core.Invalid},
		"a revoked node":                {nodeWith(func(n *raftv1.Node) { n.Revoked = true }), core.Invalid},
		"no node":                       {&raftv1.Command{Op: &raftv1.Command_PutNode{PutNode: &raftv1.PutNode{}}}, core.Invalid},
		"a long join token":             {fsm.PutNode(node("n", "n"), long), core.Invalid},
		"revoking without an id":        {fsm.RevokeNode(""), core.Invalid},
		"removing a node without an id": {fsm.RemoveNode(""), core.Invalid},
		"a token without an id":         {tokenWith(func(t *raftv1.Token) { t.Id = "" }), core.Invalid},
		"a token with a long name":      {tokenWith(func(t *raftv1.Token) { t.Name = strings.Repeat("x", 256) }), core.Invalid},
		"a token of an unknown kind":    {tokenWith(func(t *raftv1.Token) { t.Kind = "" }), core.Invalid},
		"a token in clear":              {tokenWith(func(t *raftv1.Token) { t.SecretHash = []byte("secret") }), core.Invalid},
		"a token without a scope":       {tokenWith(func(t *raftv1.Token) { t.Scopes = nil }), core.Invalid},
		"a token with a scope twice":    {tokenWith(func(t *raftv1.Token) { t.Scopes = []string{"read", "read"} }), core.Invalid},
		"a token with an unknown scope": {tokenWith(func(t *raftv1.Token) { t.Scopes = []string{"root"} }), core.Invalid},
		"an API token with a role":      {tokenWith(func(t *raftv1.Token) { t.Roles = []string{"hive"} }), core.Invalid},
		"a join token with a scope":     {tokenWith(func(t *raftv1.Token) { t.Kind, t.Roles = "join", []string{"hive"} }), core.Invalid},
		"a join token without a role":   {tokenWith(func(t *raftv1.Token) { t.Kind, t.Scopes = "join", nil }), core.Invalid},
		"a token with a negative life":  {tokenWith(func(t *raftv1.Token) { t.TtlSeconds = -1 }), core.Invalid},
		"a token with an endless life":  {tokenWith(func(t *raftv1.Token) { t.TtlSeconds = 1 << 40 }), core.Invalid},
		"a token before its time":       {tokenWith(func(t *raftv1.Token) { t.CreatedUnix = -1 }), core.Invalid},
		"a token that is used":          {tokenWith(func(t *raftv1.Token) { t.UsedBy = "n" }), core.Invalid},
		"a token with a used key":       {tokenWith(func(t *raftv1.Token) { t.UsedKeyHash = []byte{1} }), core.Invalid},
		"no token":                      {&raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{}}}, core.Invalid},
		"deleting without an id":        {fsm.DeleteToken(""), core.Invalid},
		"no gossip keys":                {fsm.SetKeyring(nil, 1), core.Invalid},
		"too many gossip keys":          {fsm.SetKeyring(make([]byte, 1<<17), 1), core.TooLarge},
		"too many workers": {with(func(s *raftv1.SyncHive) {
			for i := range fsm.MaxWorkers {
				s.Workers = append(s.Workers, &raftv1.Worker{Id: fmt.Sprint(i), Hive: "h1", Type: "cpu", State: "ready"})
			}
		}), core.TooLarge},
		"too many devices": {with(func(s *raftv1.SyncHive) {
			for i := range fsm.MaxDevices {
				s.Hive.Devices = append(s.Hive.Devices, &raftv1.Device{Id: fmt.Sprint(i)})
			}
		}), core.TooLarge},
	} {
		err := fsm.Validate(tt.cmd)
		must.Eq(t, tt.kind, core.KindOf(err), must.Sprintf("%s: %v", name, err))
	}
}

// The hives that fit make a valid command, and one more makes it invalid.
func TestFitSyncHives(t *testing.T) {
	t.Parallel()
	must.Eq(t, 0, fsm.FitSyncHives(nil))
	must.Eq(t, fsm.MaxHivesPerCommand, fsm.FitSyncHives(many(fsm.MaxHivesPerCommand)))
	must.Eq(t, fsm.MaxHivesPerCommand, fsm.FitSyncHives(many(fsm.MaxHivesPerCommand+1)))

	large := many(200)
	for i := range large {
		large[i].Hive.Name = strings.Repeat("x", fsm.MaxTextBytes)
		for w := range 100 {
			worker := worker(large[i].Hive.ID, fmt.Sprint("w", i, "-", w), wReady, fmt.Sprint(i, "-", w))
			worker.Version = strings.Repeat("v", 300)
			large[i].Workers = append(large[i].Workers, worker)
		}
	}
	n := fsm.FitSyncHives(large)
	must.Between(t, 50, n, 150)
	must.NoError(t, fsm.Validate(fsm.SyncHives(large[:n])))
	must.Eq(t, core.TooLarge, core.KindOf(fsm.Validate(fsm.SyncHives(large[:n+2]))))

	// The tags and lengths of many hives add up.
	small := many(fsm.MaxHivesPerCommand)
	for i := range small {
		for w := range 10 {
			worker := worker(small[i].Hive.ID, fmt.Sprint("w", i, "-", w), wReady, fmt.Sprint(i, "-", w))
			worker.Version = strings.Repeat("v", 740)
			small[i].Workers = append(small[i].Workers, worker)
		}
		size := proto.Size(fsm.SyncHive(small[i].Hive, small[i].Workers).GetSyncHive())
		small[i].Workers[0].Version = strings.Repeat("v", 740+8191-size)
	}
	n = fsm.FitSyncHives(small)
	must.Between(t, fsm.MaxHivesPerCommand-10, n, fsm.MaxHivesPerCommand)
	must.NoError(t, fsm.Validate(fsm.SyncHives(small[:n])))

	// The largest hive that may be logged alone may be logged in a batch as well.
	huge := fsm.HiveState{Hive: hive("h", 1, "")}
	for w := range fsm.MaxWorkers {
		worker := worker("h", fmt.Sprint("w", w), wReady, "")
		worker.Version = strings.Repeat("v", fsm.MaxTextBytes-60) // slightly too many
		huge.Workers = append(huge.Workers, worker)
	}
	must.Eq(t, core.TooLarge, core.KindOf(fsm.Validate(fsm.SyncHive(huge.Hive, huge.Workers))))
	for fsm.Validate(fsm.SyncHive(huge.Hive, huge.Workers)) != nil {
		huge.Workers = huge.Workers[32:]
	}
	must.Eq(t, 1, fsm.FitSyncHives([]fsm.HiveState{huge, huge}))
	batch := fsm.SyncHives([]fsm.HiveState{huge})
	batch.RequestId = strings.Repeat("x", fsm.MaxIDBytes)
	must.NoError(t, fsm.Validate(batch))
}

// An older version applies the commands that it knows as this one does, and never gets others.
func TestRequired(t *testing.T) {
	t.Parallel()
	h := hive("h", 1, "")
	for _, c := range []*raftv1.Command{fsm.SyncHive(h, nil), fsm.SyncHive(drains(h), nil), fsm.SetHiveStatus("h", down, 0)} {
		must.Eq(t, 1, fsm.Required(c), must.Sprint(c))
	}
	for _, c := range []*raftv1.Command{
		fsm.SyncHive(addressed(h, "h:1"), nil), fsm.SyncHives(many(1)), fsm.SetHiveDraining("h", true),
		fsm.RetireWorker("", "w"), fsm.RemoveHive("h"), // they leave more state behind than before
		fsm.InitCluster(cluster("c"), nil, nil), fsm.RevokeNode("n"), fsm.RemoveNode("n"),
		fsm.PutToken(apiToken("t")), fsm.DeleteToken("t"), fsm.SetKeyring([]byte("k"), 1),
	} {
		must.Eq(t, 2, fsm.Required(c), must.Sprint(c))
	}
	// A certificate can be renewed while an older queen lives; a machine that joins waits for the
	// upgrade, as its token would not be bound.
	table := fsm.NewTable(fsm.Version, fsm.Features())
	for token, want := range map[string]uint32{"": 2, "j": 3} {
		c := fsm.PutNode(node("n", "n"), token)
		must.Eq(t, 3, fsm.Required(c))
		table.Fit(c, 2)
		must.Eq(t, want, fsm.Required(c), must.Sprint(token))
	}
}
