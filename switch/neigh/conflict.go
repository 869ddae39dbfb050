package neigh

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrConflict is what a ConflictError wraps.
var ErrConflict = errors.New("two stations must not share an address in one VNI; detach one of them or look for an allocator that lost its state")

// ConflictError is Insert's error when the address already belongs to another neighbour. Its text names ports by
// number; who knows their names can make a better one of the fields and ErrConflict.
type ConflictError struct {
	VNI             uint32
	Addr            netip.Addr
	Owner, Claimant Neighbor
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("insert neighbor %v in VNI %d for %v on port %d: it belongs to %v on port %d: %v",
		e.Addr, e.VNI, e.Claimant.MAC, e.Claimant.Port, e.Owner.MAC, e.Owner.Port, ErrConflict)
}

// Unwrap returns ErrConflict.
func (e *ConflictError) Unwrap() error { return ErrConflict }
