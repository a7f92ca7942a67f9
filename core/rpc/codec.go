package rpc

import (
	"fmt"
	"reflect"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const (
	// maxDecodedBytes bounds the decoded size of a message. An empty worker takes two bytes on the
	// wire, but more than two hundred decoded.
	maxDecodedBytes = 16 << 20
	// smallMessage is the encoded size below which messages are not checked: decoded, they cannot
	// exceed a few MiB.
	smallMessage = 16 << 10
	// maxNesting bounds the nesting of messages.
	maxNesting = 32

	sliceHeader = 24
	mapEntry    = 96 // bytes of an entry of a Go map, with its share of the empty ones
)

// Codec returns a protobuf codec that refuses, before decoding, a message that would take more than
// 16 MiB of memory.
func Codec() encoding.CodecV2 { return boundedCodec{encoding.GetCodecV2(encodingproto.Name)} }

type boundedCodec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c boundedCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok || data.Len() <= smallMessage {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	d := m.ProtoReflect().Descriptor()
	cost := costs{left: maxDecodedBytes}
	if err := cost.message(d, buf.ReadOnlyData(), 0); err != nil {
		return status.Errorf(codes.ResourceExhausted, "%s of %d bytes: %s", d.FullName(), data.Len(), err)
	}
	return c.CodecV2.Unmarshal(mem.BufferSlice{buf}, v)
}

// costs adds up the memory of a message.
type costs struct{ left int64 }

func (c *costs) take(n int) error {
	if c.left -= int64(n); c.left < 0 {
		return fmt.Errorf("it would take more than %d MiB of memory", maxDecodedBytes>>20)
	}
	return nil
}

func (c *costs) message(d protoreflect.MessageDescriptor, b []byte, depth int) error {
	if depth > maxNesting {
		return fmt.Errorf("messages are nested more than %d deep", maxNesting)
	}
	if err := c.take(sizeOf(d)); err != nil {
		return err
	}
	fields := d.Fields()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil // malformed: proto reports it
		}
		size := protowire.ConsumeFieldValue(num, typ, b[n:])
		if size < 0 {
			return nil
		}
		value := b[n : n+size]
		b = b[n+size:]
		if err := c.field(fields.ByNumber(num), typ, value, depth); err != nil {
			return err
		}
	}
	return nil
}

func (c *costs) field(f protoreflect.FieldDescriptor, typ protowire.Type, value []byte, depth int) error {
	if f == nil { // an unknown field, kept as it is
		return c.take(len(value) + 2*sliceHeader)
	}
	if typ != protowire.BytesType {
		if f.IsList() {
			return c.take(2 * 8) // append doubles
		}
		return c.take(8)
	}
	inner, n := protowire.ConsumeBytes(value)
	if n < 0 {
		return nil
	}
	switch {
	case f.IsMap():
		if err := c.take(mapEntry); err != nil {
			return err
		}
		return c.message(f.Message(), inner, depth+1)
	case f.Message() != nil:
		if err := c.take(2 * 8); err != nil {
			return err
		}
		return c.message(f.Message(), inner, depth+1)
	case f.Kind() == protoreflect.StringKind || f.Kind() == protoreflect.BytesKind:
		return c.take(2*sliceHeader + len(inner))
	}
	return c.take(2 * 8 * len(inner)) // packed numbers, one byte each
}

// sizes caches the sizes of Go structs by the descriptor's full name. The number of message types
// in the program bounds it.
var sizes sync.Map

func sizeOf(d protoreflect.MessageDescriptor) int {
	if d.IsMapEntry() {
		return 0
	}
	if n, ok := sizes.Load(d.FullName()); ok {
		return n.(int) //nolint:forcetypeassert // only stored below
	}
	n := 256
	if t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName()); err == nil {
		if rt := reflect.TypeOf(t.Zero().Interface()); rt.Kind() == reflect.Pointer {
			n = int(rt.Elem().Size())
		}
	}
	sizes.Store(d.FullName(), n)
	return n
}
