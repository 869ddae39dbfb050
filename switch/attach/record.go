package attach

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// Each record carries a checksum, and the bucket's sequence number is the exclusive or of all of them, so that
// a record that is missing, or is there again, is noticed as well. The file's form has a check of its own
// (checkPages), and all three are asked before an address is given out.

// schema is the version of the records' form. A record of another one is not understood.
const schema = 2

var bucket = []byte("attachments")

// record is the value of one key of the bucket: as JSON, with checkSize bytes of checksum behind it.
type record struct {
	Schema int `json:"schema"`
	Attachment
}

// checkSize is that of a checksum, in bytes: of 2^32 damaged records, one passes with a probability of 2^-32.
const checkSize = 8

// checkOf is the beginning of the SHA-256 of a record with its key, which no record has the zero of.
func checkOf(key, text []byte) uint64 {
	sum := sha256.Sum256(slices.Concat(key, []byte{0}, text))
	return binary.BigEndian.Uint64(sum[:])
}

func encodeRecord(a Attachment) (value []byte, check uint64, err error) {
	text, err := json.Marshal(record{schema, a})
	if err != nil {
		return nil, 0, fmt.Errorf("encode the record: %w", err)
	}
	check = checkOf([]byte(a.Key()), text)
	return binary.BigEndian.AppendUint64(text, check), check, nil
}

func decodeRecord(key, value []byte) (a Attachment, check uint64, err error) {
	if len(value) < checkSize {
		return a, 0, fmt.Errorf("record %.80q has %d bytes", key, len(value))
	}
	text, sum := value[:len(value)-checkSize], value[len(value)-checkSize:]
	if check = checkOf(key, text); check != binary.BigEndian.Uint64(sum) {
		return a, 0, fmt.Errorf("record %.80q does not match its checksum", key)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return a, 0, fmt.Errorf("record %.80q: %w", key, err)
	}
	if r.Schema != schema || r.Key() != string(key) {
		return a, 0, fmt.Errorf("record %.80q has schema %d (this agent has %d) and key %q", key, r.Schema, schema, r.Key())
	}
	return r.Attachment, check, nil
}
