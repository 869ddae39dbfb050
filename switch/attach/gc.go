package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"tapyard/cniplugin/podapi"
)

// Read the CNI specification 1.1, section 2, GC, first.

// validAttachment is an entry of the list of those that are to stay.
type validAttachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// handleGC takes the list under the name that the specification has, and under that which its first edition had in
// an example; runtimes send both. Without any list only what has surely gone is collected: `cnitool gc` sends none.
func (m *Manager) handleGC(ctx context.Context, stdin []byte, own Conf) error {
	var conf struct {
		Name  string          `json:"name"`
		Valid json.RawMessage `json:"cni.dev/valid-attachments"`
		Other json.RawMessage `json:"cni.dev/attachments"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return podapi.Errorf(podapi.CodeDecode, "decode the network configuration: %v", err)
	}
	if conf.Name == "" {
		return podapi.Errorf(podapi.CodeInvalidConf, "key \"name\" is missing: GC is about the pods of one network configuration")
	}
	valid := map[string]bool{}
	for key, text := range map[string]json.RawMessage{"cni.dev/valid-attachments": conf.Valid, "cni.dev/attachments": conf.Other} {
		var list []validAttachment
		if text == nil {
			continue
		}
		if err := json.Unmarshal(text, &list); err != nil {
			return podapi.Errorf(podapi.CodeInvalidConf, "key %q: %v", key, err)
		}
		for _, v := range list {
			valid[Request{ContainerID: v.ContainerID, IfName: v.IfName}.key()] = true
		}
	}
	if conf.Valid == nil && conf.Other == nil {
		return m.collect(ctx, func(e entry) bool { return e.a.Conflist == conf.Name && m.vanished(e, netnsPaths) })
	}
	// The plugin that gives out addresses last: what we have collected, it has got back by then.
	return errors.Join(m.GC(ctx, conf.Name, valid), callIPAM(ctx, "GC", own))
}

// GC detaches the pods that were added by the network configuration of that name and whose Key is not among those
// valid. It goes on after an error and returns all. The runtime adds and deletes none meanwhile.
func (m *Manager) GC(ctx context.Context, conflist string, valid map[string]bool) error {
	return m.collect(ctx, func(e entry) bool { return e.a.Conflist == conflist && !valid[e.a.Key()] })
}

func (m *Manager) collect(ctx context.Context, stale func(entry) bool) error {
	var errs []error
	for _, e := range m.snapshot() {
		if !stale(e) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("collect %s: %w", e.a.Key(), err))...)
		}
		if err := m.detachIf(ctx, e.a.Key(), stale, "a pod without a DEL is collected"); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", e.a.Key(), err))
		}
	}
	return errors.Join(errs...)
}
