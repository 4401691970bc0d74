package disk

import "github.com/vhbad/vhbad/port"

// EndUnwanted ends what the port has waiting for connections that have gone, which is
// never executed then, but for a flush, which others hear of. It returns how many
// commands of theirs there are still on the way to the HBA; a later call sees that they
// have reached it. What reaches the unit while that is off is not executed either.
//
// Level: Passive.
func (d *Disk) EndUnwanted(p *port.Processor) (left int) { return d.lu.EndUnwanted(p, unwanted) }

// unwanted reports whether srb is of a client who has gone.
func unwanted(srb *port.SRB) bool {
	c, ok := srb.Completer.(*command)
	return ok && c.step != stepSync && !c.s.conn.Alive()
}
