// `--set run.train.steps=10`: one field of a spec, on the command line.
#pragma once

#include <string>

#include "common/located_json.h"
#include "common/violations.h"
#include "google/protobuf/descriptor.h"

namespace lemo::cli {

// The name under which faults of assignments are reported, in place of a file.
inline constexpr char kAssignmentSource[] = "--set";

// Puts the value of `text` into `root`, the tree of a message of `type`, before it is read; what is
// put in has line 0. The path is names, [indexes] (one behind the last appends) and, behind a map,
// a key; the value is JSON or a bare word, and `null` clears. Faults of the path go to
// `violations`; those of the value show when the tree is read.
void ApplyAssignment(const std::string& text, const google::protobuf::Descriptor* type,
                     LocatedJson* root, Violations* violations);

}  // namespace lemo::cli
