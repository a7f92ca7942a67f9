package sdk

import (
	"errors"
	"io"

	"google.golang.org/grpc"
)

// Receive calls each with every message of stream until it ends. The caller then cancels the
// stream's context.
func Receive[M any](stream grpc.ServerStreamingClient[M], each func(*M) error) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return FromStatus(err)
		}
		if err := each(m); err != nil {
			return err
		}
	}
}
