#include "coordinator/api/content_stream.h"

#include <algorithm>

#include "coordinator/api/errors.h"

namespace lemo::coordinator {

grpc::Status SendContent(ArtifactStore* artifacts, const std::string& sha256, int64_t offset,
                         grpc::ServerWriter<lemo::v1::DataChunk>* writer) {
  if (offset < 0) return ToGrpc(absl::InvalidArgumentError("offset cannot be negative"));
  lemo::v1::DataChunk chunk;
  bool open = true;
  const absl::Status read = artifacts->Read(sha256, offset, [&](int64_t at, std::string_view data) {
    chunk.set_offset(at);
    chunk.set_data(data.data(), data.size());
    return open = writer->Write(chunk);
  });
  if (!read.ok()) return ToGrpc(read);
  if (!open) return grpc::Status::CANCELLED;
  lemo::v1::DataChunk last;
  last.set_offset(chunk.offset() + static_cast<int64_t>(chunk.data().size()));
  last.set_sha256(sha256);
  writer->Write(last);
  return grpc::Status::OK;
}

absl::StatusOr<int> PageSize(int requested) {
  constexpr int kDefault = 50, kMost = 1000;
  if (requested < 0) {
    return absl::InvalidArgumentError("page_size: cannot be negative");
  }
  return requested == 0 ? kDefault : std::min(requested, kMost);
}

}  // namespace lemo::coordinator
