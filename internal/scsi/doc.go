// Package scsi has the layouts of SCSI: command descriptor blocks, sense data
// and the parameter data of the commands that a disk speaks.
//
// Both ends use it. A class driver builds CDBs with the Put functions and reads
// answers with the Parse functions; a device server does the reverse. The
// package knows layouts only: no device, no queue, no policy.
//
//	cdb.go       builders, lengths and fields of command descriptor blocks
//	opcode.go    operation codes and service actions
//	status.go    status codes, sense keys, additional sense codes
//	sense.go     fixed and descriptor format sense data
//	inquiry.go   standard INQUIRY data and the device identification pages
//	vpd.go       block device VPD pages: limits, characteristics, provisioning
//	capacity.go  READ CAPACITY (10) and (16)
//	mode.go      MODE SENSE headers, block descriptors, caching and control pages
//	modeselect.go  parameter list of MODE SELECT
//	luns.go      REPORT LUNS
//	unmap.go     UNMAP parameter list and GET LBA STATUS data
//
// Everything is big endian, as in the standards. Builders write into memory of
// the caller and return the number of bytes written, never more than it has
// room for: a short buffer truncates, as an allocation length does. Parsers
// take any bytes, never panic, and report false for data too short to mean
// anything. Nothing allocates, and every function may be called from any
// goroutine.
//
// Sections are those of SPC-4 (ISO/IEC 14776-454) and SBC-3 (ISO/IEC 14776-323).
package scsi
