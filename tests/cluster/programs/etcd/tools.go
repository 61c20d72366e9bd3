//go:build tools

// Package programs names the command that tests/cluster builds from this module.
package programs

import _ "go.etcd.io/etcd/server/v3"
