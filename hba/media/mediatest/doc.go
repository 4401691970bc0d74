// Package mediatest is the acceptance suite for media: what every media.Media
// has to do, whichever it is. A new medium, or a wrapper around one, calls Run.
package mediatest
