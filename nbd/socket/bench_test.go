package socket_test

import (
	"fmt"
	"testing"
)

// BenchmarkConn sends batches of messages and receives them at the other end: the two
// system calls and the kernel's two copies. An operation is one message.
func BenchmarkConn(b *testing.B) {
	for _, network := range []string{"unix", "tcp"} {
		for _, o := range []struct{ size, batch int }{{16, 1}, {16, 32}, {4 << 10, 1}, {4 << 10, 16}} {
			b.Run(fmt.Sprintf("network=%s/bytes=%d/batch=%d", network, o.size, o.batch), func(b *testing.B) {
				from, to := pair(b, network)
				sender, receiver := take(b, from), take(b, to)
				bufs := make([][]byte, o.batch)
				for i := range bufs {
					bufs[i] = make([]byte, o.size)
				}
				in := make([]byte, o.batch*o.size)
				b.SetBytes(int64(o.size))
				b.ReportAllocs()
				for n := 0; n < b.N; n += o.batch {
					if sent, err := sender.Send(bufs); sent != len(in) || err != nil {
						b.Fatalf("sent %d of %d: %v", sent, len(in), err)
					}
					for got := 0; got < len(in); {
						k, err := receiver.Receive([][]byte{in[got:]})
						if err != nil {
							b.Fatal(err)
						}
						got += k
					}
				}
			})
		}
	}
}
