package main

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// conflistName is the file's in the runtimes' folder, which take the lexically first one.
const conflistName = "10-tapyard.conflist"

// conflistTemplate is what the agent writes there if the operator has none of his own.
//
//go:embed tapyard.conflist
var conflistTemplate []byte

// writeConflist tells runtimes that pods can be attached, when they can. It stays when the agent stops: without it they
// would take another network for new pods, and couldn't delete those that are there.
func (a *agent) writeConflist(c *config) error {
	if c.CNIConfDir == "" {
		return nil
	}
	text, err := c.conflist()
	if err != nil {
		return err
	}
	path := filepath.Join(c.CNIConfDir, conflistName)
	changed, err := replaceFile(path, text, 0o644)
	if err != nil {
		return fmt.Errorf("tell container runtimes about this network (cniConfDir): %w", err)
	}
	if changed {
		a.log.Info("container runtimes find this network now", "path", path)
	}
	return nil
}

// conflist returns the operator's template or ours, with the way to this agent in it.
func (c *config) conflist() ([]byte, error) {
	text, err := os.ReadFile(c.Conflist)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = conflistTemplate, nil
	}
	if err != nil {
		return nil, fmt.Errorf("template of the CNI configuration (conflist): %w", err)
	}
	var list map[string]any
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("template of the CNI configuration %s: %w", c.Conflist, err)
	}
	plugins, _ := list["plugins"].([]any)
	if len(plugins) == 0 {
		return nil, fmt.Errorf("template of the CNI configuration %s: it has no plugins; a conflist is {\"name\": …, \"plugins\": [{\"type\": \"tapyard\"}]}", c.Conflist)
	}
	for _, p := range plugins {
		if plugin, ok := p.(map[string]any); ok && plugin["type"] == "tapyard" && plugin["socket"] == nil && c.RunDir != defaults().RunDir {
			plugin["socket"] = filepath.Join(c.RunDir, "cni.sock")
		}
	}
	text, err = json.MarshalIndent(list, "", "  ")
	return append(text, '\n'), err
}

// replaceFile gives the file that content at once: readers see the old or the new one. It says whether it was another.
func replaceFile(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if st, serr := os.Stat(path); err == nil && serr == nil && string(old) == string(content) && st.Mode().Perm() == mode {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	// Hidden, and of an ending that no runtime reads.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.new")
	if err != nil {
		return false, err
	}
	_, err = f.Write(content)
	err = cmp.Or(err, f.Chmod(mode), f.Sync())
	if err = cmp.Or(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(f.Name()))
	}
	return true, nil
}
