module fedpipe.io/tests/cluster/programs/pause

go 1.21
