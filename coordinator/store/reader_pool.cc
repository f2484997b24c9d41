#include "coordinator/store/reader_pool.h"

#include "common/status_macros.h"

namespace lemo::coordinator {

absl::StatusOr<std::unique_ptr<ReaderPool>> ReaderPool::Open(const std::string& path, int size) {
  auto pool = std::make_unique<ReaderPool>();
  for (int i = 0; i < size; ++i) {
    LEMO_ASSIGN_OR_RETURN(std::unique_ptr<SqlConnection> connection, SqlConnection::Open(path));
    LEMO_RETURN_IF_ERROR(connection->Execute("PRAGMA query_only = ON; PRAGMA temp_store = MEMORY"));
    absl::MutexLock lock(&pool->mutex_);
    pool->free_.push_back(std::move(connection));
  }
  return pool;
}

ReaderPool::Lease ReaderPool::Take() {
  absl::MutexLock lock(&mutex_);
  const auto any = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !free_.empty(); };
  mutex_.Await(absl::Condition(&any));
  // The one that came back last: its cache is the warmest.
  std::unique_ptr<SqlConnection> connection = std::move(free_.back());
  free_.pop_back();
  return Lease(this, std::move(connection));
}

ReaderPool::Lease::~Lease() {
  if (connection_ == nullptr) return;
  absl::MutexLock lock(&pool_->mutex_);
  pool_->free_.push_back(std::move(connection_));
}

}  // namespace lemo::coordinator
