// Command merge joins the lock-order graphs that the tests of all packages have
// written into a folder, and fails if they have a cycle; see package lockorder.
package main
