#include "common/handed_descriptor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/making_lock.h"
#include "common/status_macros.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSocket = ".socket";
constexpr int kWaiting = 64;  // connections that are not accepted yet
constexpr int kAnswerMilliseconds = 5000;

// By way of the open directory: a path of any length would not fit an address.
absl::StatusOr<sockaddr_un> AddressOf(int directory, const std::string& file) {
  sockaddr_un address{.sun_family = AF_UNIX};
  const std::string path = absl::StrCat("/proc/self/fd/", directory, "/", file);
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": too long a name for a socket"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Descriptor NewSocket() { return Descriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)); }

// One byte, which there must be, with room for a descriptor beside it. Points into itself.
struct Message {
  Message() {
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
  }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  char byte = 0;
  iovec data{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
};

void Hand(int connection, int descriptor) {
  Message message;
  cmsghdr* header = CMSG_FIRSTHDR(&message.header);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  // One who has gone in the meantime does not want it any more.
  ::sendmsg(connection, &message.header, MSG_NOSIGNAL);
}

// What the other end hands over; none where it goes or says nothing.
Descriptor Receive(int connection) {
  pollfd wait{.fd = connection, .events = POLLIN};
  if (::poll(&wait, 1, kAnswerMilliseconds) <= 0) return Descriptor();
  Message message;
  if (::recvmsg(connection, &message.header, MSG_CMSG_CLOEXEC) <= 0) return Descriptor();
  const cmsghdr* header = CMSG_FIRSTHDR(&message.header);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int))) {
    return Descriptor();
  }
  int descriptor = -1;
  std::memcpy(&descriptor, CMSG_DATA(header), sizeof(int));
  return Descriptor(descriptor);
}

// From whoever has it. Removes sockets that nobody listens at.
Descriptor Ask(int directory, const fs::path& path, const std::string& name) {
  std::error_code error;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string file = entry->path().filename().string();
    if (!absl::StartsWith(file, name + ".") || !absl::EndsWith(file, kSocket)) continue;
    const absl::StatusOr<sockaddr_un> address = AddressOf(directory, file);
    const Descriptor connection = NewSocket();
    if (!address.ok() || connection.get() < 0) continue;
    if (::connect(connection.get(), reinterpret_cast<const sockaddr*>(&*address),
                  sizeof(*address)) != 0) {
      if (errno == ECONNREFUSED) ::unlinkat(directory, file.c_str(), 0);
      continue;
    }
    Descriptor received = Receive(connection.get());
    if (received.get() >= 0) return received;
  }
  return Descriptor();
}

}  // namespace

HandedDescriptor::HandedDescriptor(Descriptor descriptor, Descriptor socket, fs::path path)
    : descriptor_(std::move(descriptor)), socket_(std::move(socket)), path_(std::move(path)) {
  thread_ = std::thread([this] { Serve(); });
}

HandedDescriptor::~HandedDescriptor() {
  ::unlink(path_.c_str());
  ::shutdown(socket_.get(), SHUT_RDWR);  // ends the wait for another
  thread_.join();
}

void HandedDescriptor::Serve() const {
  for (;;) {
    const Descriptor connection(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (connection.get() >= 0) {
      Hand(connection.get(), descriptor_.get());
    } else if (errno == EINVAL || errno == EBADF) {
      return;
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));  // until there is room for one
    }
  }
}

absl::StatusOr<std::unique_ptr<HandedDescriptor>> TakeDescriptor(
    const fs::path& directory, const std::string& name,
    const std::function<absl::StatusOr<Descriptor>()>& make, std::chrono::milliseconds patience) {
  const LockClock::time_point deadline = LockClock::now() + patience;
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  const Descriptor open(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (open.get() < 0) return ErrnoStatus(errno, "open", directory);
  LEMO_ASSIGN_OR_RETURN(const Descriptor asking,
                        LockMaking(directory / absl::StrCat(name, ".lock"), deadline));
  Descriptor descriptor = Ask(open.get(), directory, name);
  if (descriptor.get() < 0) {
    LEMO_ASSIGN_OR_RETURN(descriptor, make());
  }
  // Listens before the lock is given up: nobody makes it a second time in between.
  const std::string file =
      absl::StrCat(name, ".", absl::StrFormat("%08x", std::random_device()()), kSocket);
  LEMO_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(open.get(), file));
  Descriptor socket = NewSocket();
  if (socket.get() < 0 ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(socket.get(), kWaiting) != 0) {
    return ErrnoStatus(errno, "listen at", directory / file);
  }
  return std::make_unique<HandedDescriptor>(std::move(descriptor), std::move(socket),
                                            directory / file);
}

}  // namespace lemo
