package port

import (
	"errors"
	"fmt"
)

// routineID names a support routine that may not be called from everywhere.
type routineID uint8

const (
	routineGetUncachedExtension routineID = iota
	routineGetDeviceBase
	routineGetBusData
	routineSetFeatureList
	routineEnablePassiveInitialization
	routineInitializePerfOpts
	routineInitializeDpc
	routineQueueWorkItem
	routineGetMSIInfo
	routineAcquireSpinLock
	routineSubmit
	routineExecute
	routineEnumerate
	routineStop
	routineRestart
	routineRemove
	routineResetNow
	routineUpdateAdapterMaxIO
	routineInitializeTimer
	routineFreeTimer
	routineAllocatePool
	routineFreePool
	routineAllocateDmaMemory
	routineGetSystemAddress
	routineInitializeSpinlock
	routineLogSystemEvent
	routineCount
)

// Sets of callbacks.
const (
	anyCallback    = ^uint32(0)
	underInterrupt = 1<<inInterrupt | 1<<inSynchronized | 1<<inInitialize
	inEnumeration  = 1<<inUnitControl | 1<<inUnitsChanged
)

// places says where a routine may be called from: check V7. Routines that the vendor's
// pages allow anywhere, at any level, are not in the table.
// Source: the vendor's page of each routine; "Storport Driver Verification".
var places = [routineCount]struct {
	name      string
	callbacks uint32 // bit set of Callback
	maxLevel  Level
	noLocks   bool // with none of the port's locks held
}{
	routineGetUncachedExtension:        {"GetUncachedExtension", 1 << inFindAdapter, Passive, false},
	routineGetDeviceBase:               {"GetDeviceBase", 1 << inFindAdapter, Passive, false},
	routineGetBusData:                  {"GetBusData", 1<<inFindAdapter | 1<<inAdapterControl, Dispatch, false},
	routineSetFeatureList:              {"SetFeatureList", 1 << inFindAdapter, Passive, false},
	routineEnablePassiveInitialization: {"EnablePassiveInitialization", 1 << inInitialize, Device, false},
	routineInitializePerfOpts:          {"InitializePerfOpts", 1<<inInitialize | 1<<inPassiveInitialize, Device, false},
	routineInitializeDpc:               {"InitializeDpc", 1 << inPassiveInitialize, Passive, false},
	routineQueueWorkItem:               {"QueueWorkItem", anyCallback, Dispatch, false},
	routineGetMSIInfo:                  {"GetMSIInfo", ^uint32(1 << inInterrupt), Device, false},
	// Before Initialize there are no interrupts to hold off, and the lock table
	// lets the passive initialization take none.
	routineAcquireSpinLock: {"AcquireSpinLock", ^uint32(1<<inFindAdapter | 1<<inPassiveInitialize), Device, false},
	// The port's upper edge. Submit runs miniport code; the others wait.
	routineSubmit:    {"Submit", ^uint32(underInterrupt), Dispatch, true},
	routineExecute:   {"Execute", anyCallback, Passive, true},
	routineEnumerate: {"Enumerate", ^uint32(inEnumeration), Passive, true}, // they take turns
	routineStop:      {"Stop", anyCallback, Passive, true},
	routineRestart:   {"Restart", anyCallback, Passive, true},
	routineRemove:    {"Remove", ^uint32(1<<inWorkItem | inEnumeration), Passive, true}, // it waits for their end
	routineResetNow:  {"ResetNow", anyCallback, Passive, true},

	routineUpdateAdapterMaxIO: {"UpdateAdapterMaxIO", 1<<inInitialize | 1<<inPassiveInitialize, Device, false},
	routineInitializeTimer:    {"InitializeTimer", anyCallback, Dispatch, false},
	routineFreeTimer:          {"FreeTimer", anyCallback, Dispatch, false},
	routineAllocatePool:       {"AllocatePool", anyCallback, Dispatch, false},
	routineFreePool:           {"FreePool", anyCallback, Dispatch, false},
	routineAllocateDmaMemory:  {"AllocateDmaMemory", anyCallback, Dispatch, false},
	routineGetSystemAddress:   {"GetSystemAddress", anyCallback, Dispatch, false},
	routineInitializeSpinlock: {"InitializeSpinlock", 1<<inFindAdapter | 1<<inPassiveInitialize, Passive, false},
	routineLogSystemEvent:     {"LogSystemEvent", anyCallback, Dispatch, false},
}

// allowed reports whether routine r may be called where p is.
func (p *Processor) allowed(r routineID) bool {
	pl := &places[r]
	return pl.callbacks&(1<<p.callback) != 0 && p.level <= pl.maxLevel && (!pl.noLocks || p.nheld == 0)
}

// check reports a routine called in the wrong place (V7) and whether the place
// was right.
func (p *Processor) check(r routineID) bool {
	if p.allowed(r) {
		return true
	}
	if p.verify {
		p.violate(CheckCallingPlace, nil, fmt.Sprintf("%s called from %s at %s with %d locks held", places[r].name, p.callback, p.level, p.nheld))
	}
	return false
}

// ErrWrongPlace is the error of a routine that waits, called where waiting is not
// allowed: in a callback above Passive, with a lock held, or in a work item or a function
// called by an enumeration that it would wait for.
var ErrWrongPlace = errors.New("called where it may not wait")

// mayWait is check for a routine that waits, as an error.
func (p *Processor) mayWait(a *Adapter, r routineID) error {
	if p.check(r) {
		return nil
	}
	return fmt.Errorf("%s: %s from %s at %s with %d locks held: %w", a.options.Name, places[r].name, p.callback, p.level, p.nheld, ErrWrongPlace)
}
