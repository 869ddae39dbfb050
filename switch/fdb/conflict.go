package fdb

import (
	"errors"
	"fmt"

	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// ErrConflict is what a ConflictError wraps.
var ErrConflict = errors.New("two stations must not share a MAC in one VNI; detach one of them or give it another MAC")

// ConflictError is Insert's error when the MAC is already a static entry of another destination. Its text names
// ports by number; who knows their names can make a better one of the fields and ErrConflict.
type ConflictError struct {
	VNI             uint32
	MAC             wire.MAC
	Owner, Claimant port.Dest
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("insert MAC %v in VNI %d for port %d (peer %d): it belongs to port %d (peer %d): %v",
		e.MAC, e.VNI, e.Claimant.Port, e.Claimant.Peer, e.Owner.Port, e.Owner.Peer, ErrConflict)
}

// Unwrap returns ErrConflict.
func (e *ConflictError) Unwrap() error { return ErrConflict }

func notStation(vni uint32, mac wire.MAC) error {
	return fmt.Errorf("insert MAC %v in VNI %d: not a station's address: a group address or zero", mac, vni)
}
