package hive

import (
	"google.golang.org/grpc"

	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// QueenAddress is a queen that the hive keeps a line to.
type QueenAddress struct {
	ID         string // Node.ID
	RPCAddress string // host:port; it may be empty where Conn needs none
}

// Queens is how a hive reaches the queens, and where it puts what they say of the cluster. Methods are called concurrently.
type Queens interface {
	// List gives the queens to keep a line to.
	List() []QueenAddress
	// Changed is closed when List has a new answer. It is taken before List is asked.
	Changed() <-chan struct{}
	// Conn gives the connection to a queen of the list. It does not block; the connection is not the hive's to close. Its errors must be
	// classified, as those of rpc.Client are.
	Conn(q QueenAddress) (grpc.ClientConnInterface, error)
	// Reset says that the connection to a queen seems to be stuck: the next Conn shall give one that is dialled anew.
	Reset(q QueenAddress)
	// SetView takes in what a queen says of the cluster. An older view never follows a newer one.
	SetView(v *queenv1.ClusterView)
}

// OneQueen is the Queens of a hive that has only the queen at the other end of conn.
func OneQueen(conn grpc.ClientConnInterface) Queens { return oneQueen{conn} }

type oneQueen struct{ conn grpc.ClientConnInterface }

func (o oneQueen) List() []QueenAddress                                { return []QueenAddress{{}} }
func (o oneQueen) Changed() <-chan struct{}                            { return nil }
func (o oneQueen) Conn(QueenAddress) (grpc.ClientConnInterface, error) { return o.conn, nil }
func (o oneQueen) Reset(QueenAddress)                                  {}
func (o oneQueen) SetView(*queenv1.ClusterView)                        {}
