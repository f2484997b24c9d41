// Local files to the service.
#pragma once

#include <filesystem>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "cli/connection.h"
#include "lemo/v1/file_service.pb.h"

namespace lemo::cli {

// The file on the service with the contents of `path`. Its upload id follows from the SHA-256 of
// the contents, so the same contents travel once; an upload that broke off goes on where it
// stopped, and one that breaks off now is taken up again for a while. Progress goes to `err` when
// that is a terminal. Errors: those of reading (NOT_FOUND...), else the service's.
absl::StatusOr<lemo::v1::File> Upload(const Connection& connection,
                                      const std::filesystem::path& path,
                                      const std::string& display_name, std::ostream& err);

}  // namespace lemo::cli
