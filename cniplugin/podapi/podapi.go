// Package podapi is the protocol between the CNI plugin and the agent, spoken on cni.sock: a stream socket
// that carries one request and one answer per connection. Each is a length (4 bytes, network order) and as
// many bytes of JSON, at most MaxMessage. The pod's network namespace travels as a descriptor (SCM_RIGHTS)
// with the first byte of the request, so that the agent needs neither the runtime's mounts nor its PIDs.
// Only root may ask. When the agent is down, a DEL is left in a file, a tombstone, that the agent reads at
// its next start.
package podapi

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Version is the protocol's. Both sides come out of one release; another number is refused.
const Version = 1

// MaxMessage bounds a request and an answer, in bytes. A network configuration has some hundred; a chained
// one that carries a prevResult has some thousand.
const MaxMessage = 1 << 20

// Error codes of the CNI specification 1.1, section "Error"; our own, which begin at 100; and that of the
// specification's Go library (999).
const (
	CodeVersion      = 1   // cniVersion is not supported, or has not the verb
	CodeUnknown      = 3   // there is no such attachment, and nothing of it for a DEL to remove
	CodeEnvironment  = 4   // an environment variable is missing or wrong; the message names it
	CodeIO           = 5   // reading the configuration failed
	CodeDecode       = 6   // the configuration is no JSON
	CodeInvalidConf  = 7   // a value in the configuration is wrong
	CodeTryAgain     = 11  // the runtime should retry later
	CodeNotAvailable = 50  // STATUS: no pod can be added now
	CodeLimited      = 51  // STATUS: the same, and the pods that are there don't reach all that they should
	CodeBroken       = 100 // CHECK: a pod is not connected as its ADD has left it
	CodeInternal     = 999
)

const (
	// maxContainerID leaves room for "tapyard:", a slash and the interface in a device's alias, which holds
	// 255 bytes; runtimes use 64.
	maxContainerID   = 200
	maxIfName        = 15 // IFNAMSIZ - 1
	lengthPrefixSize = 4
)

// ErrAgentDown is wrapped by Call's error when nobody listens on the socket, or the listener went away
// before it had answered.
var ErrAgentDown = errors.New("the tapyard agent is not running")

// Request is what the plugin was started with. Version was checked by the receiver's decoder, and the two names
// unless the command is about a network and not a pod; everything else is as the runtime gave it.
type Request struct {
	Version     int             `json:"version"`
	Command     string          `json:"command"`         // CNI_COMMAND
	ContainerID string          `json:"containerID"`     // CNI_CONTAINERID
	IfName      string          `json:"ifName"`          // CNI_IFNAME
	Netns       string          `json:"netns,omitempty"` // CNI_NETNS, as text; the descriptor travels beside it
	Args        string          `json:"args,omitempty"`  // CNI_ARGS
	Path        string          `json:"path,omitempty"`  // CNI_PATH
	Stdin       json.RawMessage `json:"stdin,omitempty"` // the network configuration
}

// aboutPod says that the command is about one attachment, which the two names identify.
func (r *Request) aboutPod() bool { return r.Command != "STATUS" && r.Command != "GC" }

// Response is the agent's answer: Result goes to the plugin's standard output as it is, unless Error is set.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error is a failure as the CNI specification wants it reported.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error implements error.
func (e *Error) Error() string { return e.Msg }

// Errorf returns an *Error with a formatted message.
func Errorf(code uint, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// AsError turns any error into one that can travel: the text is err's own, code and details are those of an
// *Error that it wraps, or CodeInternal.
func AsError(err error) *Error {
	out := &Error{Code: CodeInternal, Msg: err.Error()}
	if e := (*Error)(nil); errors.As(err, &e) {
		out.Code, out.Details = e.Code, e.Details
	}
	return out
}

// CheckNames refuses what the CNI specification does not allow as a container's id or an interface's name,
// naming the environment variable. Both become parts of file names and of the device's alias.
func CheckNames(containerID, ifName string) error {
	if !validID(containerID) {
		return Errorf(CodeEnvironment, "CNI_CONTAINERID %q: want 1 to %d letters, digits, '_', '.' or '-', the first a letter or digit", clip(containerID), maxContainerID)
	}
	if !validIfName(ifName) {
		return Errorf(CodeEnvironment, "CNI_IFNAME %q: want 1 to %d characters without blanks, '/' and ':'", clip(ifName), maxIfName)
	}
	return nil
}

func validID(s string) bool {
	if s == "" || len(s) > maxContainerID {
		return false
	}
	for i, c := range []byte(s) {
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// validIfName is the kernel's dev_valid_name, without the bytes that would garble an operator's terminal.
func validIfName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > maxIfName {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' {
			return false
		}
	}
	return true
}

// clip keeps hostile text from filling a log.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
