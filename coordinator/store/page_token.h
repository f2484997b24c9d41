// Where a list goes on: a place in its order, sealed with a key of the store and with what the list
// was of, so that a token that was changed, or is of another list, filter or store, is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lemo::coordinator {

// The last item of the page before: first by time, then by number.
struct PagePosition {
  int64_t time_ns = 0;
  int64_t number = 0;
};

// `scope` says which list, which filter, which order. The token is safe in a URL.
std::string EncodePageToken(std::string_view key, std::string_view scope,
                            const PagePosition& position);
// INVALID_ARGUMENT unless the token was made with this key and scope.
absl::StatusOr<PagePosition> DecodePageToken(std::string_view key, std::string_view scope,
                                             std::string_view token);

}  // namespace lemo::coordinator
