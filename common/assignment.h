// `--set a.b=c`: one field of a spec, on the command line.
#pragma once

#include <string>

#include "common/violations.h"
#include "google/protobuf/message.h"

namespace lemo {

// Applies `text` to `message`: a path of names, [indexes] (one past the end appends) and, behind a
// map, a key (`.key` or `["key"]`), then `=`, then JSON or a bare string, which replaces what the
// path names; null clears it. Reaching into a member of a oneof of which the message holds another
// member is a fault. Faults go to `violations` with `--set` for a file; `example` is an assignment
// that one of them shows.
void ApplyAssignment(const std::string& text, const std::string& example,
                     google::protobuf::Message* message, Violations* violations);

}  // namespace lemo
