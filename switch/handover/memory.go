package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"
)

// memoryName is that of the two files in the store.
const memoryName = "state"

// The header of a file, in the machine's byte order, which both processes have. The checksum, CRC-32C, is of all that
// follows it, to the end of the content.
const (
	magicAt, versionAt, sumAt, numberAt, lengthAt, headerLen = 0, 8, 12, 16, 24, 32
	magic                                                    = "TAPYARD\n"
	maxContent                                               = 256 << 20 // far more than all tables together have
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrVersion is wrapped by Read's error when another build has written.
var ErrVersion = errors.New("it is of another build")

// Memory is what a process knows and writes down for the next one: two files without a name that the store keeps, written
// in turn, so that a process that is killed in the middle of one leaves the other. It belongs to one goroutine.
type Memory struct {
	version uint32 // of the content's form
	files   [2]int
	next    int    // to be written
	number  uint64 // of what was written last
	content []byte // that Read returns
	fault   error
}

// OpenMemory returns the memory of the process before, or a new one. version is the form of the content that this build
// writes and reads.
func OpenMemory(s *Store, version uint32) (*Memory, error) {
	m := &Memory{version: version}
	found := s.Take(memoryName)
	if len(found) == len(m.files) {
		m.files = [2]int(found)
		m.recall()
		return m, nil
	}
	for _, fd := range found { // of a process that was killed between two messages
		unix.Close(fd)
	}
	for i := range m.files {
		var err error
		if m.files[i], err = unix.MemfdCreate("tapyard-"+memoryName, unix.MFD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("memfd_create: %w", err)
		}
	}
	if len(found) > 0 {
		if err := s.Drop(memoryName); err != nil {
			return nil, err
		}
	}
	return m, s.Keep(memoryName, m.files[:]...)
}

// recall reads the files. The one that was written last and is whole counts.
func (m *Memory) recall() {
	var faults []error
	for i, fd := range m.files {
		number, content, err := m.read(fd)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if content != nil && number > m.number {
			m.number, m.content, m.next = number, content, 1-i
		}
	}
	if m.content == nil {
		m.fault = errors.Join(faults...)
	}
}

// read returns nothing of an empty file.
func (m *Memory) read(fd int) (number uint64, content []byte, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, nil, fmt.Errorf("the state of the last process: %w", err)
	}
	if st.Size == 0 {
		return 0, nil, nil
	}
	if st.Size > headerLen+maxContent {
		return 0, nil, fmt.Errorf("the state of the last process is damaged: %d bytes", st.Size)
	}
	b := make([]byte, st.Size)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("read the state of the last process: %w", err)
	}
	return m.parse(b[:n])
}

func (m *Memory) parse(b []byte) (number uint64, content []byte, err error) {
	order := binary.NativeEndian
	if len(b) < headerLen || string(b[magicAt:versionAt]) != magic {
		return 0, nil, errors.New("the state of the last process is damaged: it has no header")
	}
	if v := order.Uint32(b[versionAt:]); v != m.version {
		return 0, nil, fmt.Errorf("the state of the last process has form %d, this build reads %d: %w", v, m.version, ErrVersion)
	}
	if length := order.Uint64(b[lengthAt:]); length != uint64(len(b)-headerLen) || order.Uint32(b[sumAt:]) != crc32.Checksum(b[numberAt:], castagnoli) {
		return 0, nil, errors.New("the state of the last process is damaged: length or checksum is wrong")
	}
	return order.Uint64(b[numberAt:]), b[headerLen:], nil
}

// Read returns what the process before wrote last, nil if that is nothing. The error says why it can't be read, and wraps
// ErrVersion if it is whole, but of another build.
func (m *Memory) Read() ([]byte, error) { return m.content, m.fault }

// Write writes the content that fill appends to its argument.
func (m *Memory) Write(fill func([]byte) []byte) error {
	b := fill(make([]byte, headerLen, 64<<10))
	order := binary.NativeEndian
	copy(b, magic)
	order.PutUint32(b[versionAt:], m.version)
	order.PutUint64(b[numberAt:], m.number+1)
	order.PutUint64(b[lengthAt:], uint64(len(b)-headerLen))
	order.PutUint32(b[sumAt:], crc32.Checksum(b[numberAt:], castagnoli))
	fd := m.files[m.next]
	err := unix.Ftruncate(fd, int64(len(b)))
	for at := 0; err == nil && at < len(b); {
		var n int
		n, err = unix.Pwrite(fd, b[at:], int64(at))
		at += n
	}
	if err != nil {
		return fmt.Errorf("write the state for the next process: %w", err)
	}
	m.number++
	m.next = 1 - m.next
	m.content = nil
	return nil
}

// Close closes the files, which the store goes on keeping.
func (m *Memory) Close() error { return errors.Join(unix.Close(m.files[0]), unix.Close(m.files[1])) }
