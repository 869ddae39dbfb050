package static

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"tapyard/switch/control"
)

// Decode reads a file of one YAML document into v, a pointer to a struct with yaml tags. Unknown keys are
// errors: a misspelt one would be ignored until traffic fails. The error names line, key and value of
// everything that is wrong, and the way out. It is io.EOF for a file without a document, which leaves v as
// it is.
func Decode(b []byte, v any) error {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(v); errors.Is(err, io.EOF) {
		return io.EOF
	} else if err != nil {
		return explain(b, reflect.TypeOf(v).Elem(), err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("more than one YAML document; join them")
	}
	return nil
}

// explain says of every value that doesn't fit t where it stands. The YAML package itself names neither the
// key nor, of an address, the line. What explain doesn't find, such as wrong syntax, stays as err.
func explain(b []byte, t reflect.Type, err error) error {
	var doc yaml.Node
	if yaml.Unmarshal(b, &doc) != nil || len(doc.Content) == 0 {
		return err
	}
	var e explainer
	e.value(doc.Content[0], t, "")
	if len(e.errs) == 0 {
		return err
	}
	return errors.Join(e.errs...)
}

// explainer walks a document and the type that it is for. The type is no recursive one, so aliases that
// lead in circles don't lead the walk in circles.
type explainer struct{ errs []error }

func (e *explainer) bad(n *yaml.Node, where, format string, args ...any) {
	if where != "" {
		where += ": "
	}
	e.errs = append(e.errs, fmt.Errorf("line %d: %s%s", n.Line, where, fmt.Sprintf(format, args...)))
}

func (e *explainer) value(n *yaml.Node, t reflect.Type, where string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	pointer := reflect.PointerTo(t)
	switch {
	case n.Tag == "!!null": // as if the key were not there
	case pointer.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		e.scalar(n, t, where)
	case t.Kind() == reflect.Struct:
		e.mapping(n, t, where)
	case t.Kind() == reflect.Slice && n.Kind == yaml.ScalarNode && pointer.Implements(reflect.TypeFor[yaml.Unmarshaler]()):
		e.value(n, t.Elem(), where) // one value may stand for a list of one
	case t.Kind() == reflect.Slice:
		e.list(n, t, where)
	default:
		e.scalar(n, t, where)
	}
}

func (e *explainer) mapping(n *yaml.Node, t reflect.Type, where string) {
	if n.Kind != yaml.MappingNode {
		e.bad(n, where, "here belong keys: %s", strings.Join(keys(t), ", "))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		field, known := field(t, key.Value)
		switch {
		case key.Tag == "!!merge": // what it brings is checked where its anchor is
		case !known:
			e.bad(key, where, "unknown key %q; there are %s", key.Value, strings.Join(keys(t), ", "))
		case where == "":
			e.value(n.Content[i+1], field.Type, key.Value)
		default:
			e.value(n.Content[i+1], field.Type, where+": "+key.Value)
		}
	}
}

func keys(t reflect.Type) (names []string) {
	for f := range t.Fields() {
		names = append(names, yamlKey(f))
	}
	return names
}

func field(t reflect.Type, key string) (reflect.StructField, bool) {
	return t.FieldByNameFunc(func(name string) bool {
		f, _ := t.FieldByName(name)
		return yamlKey(f) == key
	})
}

func yamlKey(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return key
}

func (e *explainer) list(n *yaml.Node, t reflect.Type, where string) {
	if n.Kind != yaml.SequenceNode {
		e.bad(n, where, "here belongs a list: [value, value]")
		return
	}
	for i, element := range n.Content {
		e.value(element, t.Elem(), fmt.Sprintf("%s[%d]%s", where, i, nameOf(element)))
	}
}

// nameOf returns what a mapping says as its name, in brackets: peers are known by it.
func nameOf(n *yaml.Node) string {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "name" && n.Content[i+1].Value != "" {
			return " (" + n.Content[i+1].Value + ")"
		}
	}
	return ""
}

func (e *explainer) scalar(n *yaml.Node, t reflect.Type, where string) {
	if n.Kind != yaml.ScalarNode {
		e.bad(n, where, "here belongs a single value")
		return
	}
	if err := n.Decode(reflect.New(t).Interface()); err != nil {
		e.bad(n, where, "%s", advice(n.Value, t, err))
	}
}

// advice says what belongs where value, which doesn't fit t, stands.
func advice(value string, t reflect.Type, err error) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		_, err = control.ParseAddr(value)
	case reflect.TypeFor[netip.Prefix]():
		_, err = control.ParsePrefix(value)
	case reflect.TypeFor[slog.Level]():
		err = fmt.Errorf("%q is none of debug, info, warn and error", value)
	case reflect.TypeFor[int]():
		err = fmt.Errorf("%q is not a whole number", value)
	case reflect.TypeFor[bool]():
		err = fmt.Errorf("%q is neither true nor false", value)
	case reflect.TypeFor[uint16](), reflect.TypeFor[uint32]():
		err = fmt.Errorf("%q is not a whole number from 0 to %d", value, uint64(1)<<t.Bits()-1)
	}
	return err.Error()
}
