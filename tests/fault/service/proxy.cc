#include "tests/fault/service/proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

namespace lemo::coordinator {
namespace {

// Bytes that wait in one way of a connection; its source is held back then.
constexpr size_t kWaitingMax = 256 << 10;
constexpr size_t kPiece = 16 << 10;

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Answers with a reset, not with an orderly end.
void Abort(int fd) {
  const linger none = {.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
  ::close(fd);
}

// A dial to a free port of the kernel's own range can be joined with itself, and then keeps the
// port from whom it belongs to.
bool JoinedWithItself(int fd) {
  sockaddr_in own = {}, peer = {};
  socklen_t own_size = sizeof(own), peer_size = sizeof(peer);
  return ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_size) == 0 &&
         ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_size) == 0 &&
         own.sin_port == peer.sin_port;
}

}  // namespace

Proxy::Proxy(const std::string& upstream, unsigned seed)
    : upstream_port_(std::stoi(upstream.substr(upstream.rfind(':') + 1))), random_(seed) {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  ::bind(listener_, reinterpret_cast<sockaddr*>(&address), size);
  ::listen(listener_, 64);
  ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
  address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  thread_ = std::thread([this] { Serve(); });
}

Proxy::~Proxy() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  Wake();
  thread_.join();
  ::close(listener_);
  ::close(wake_);
}

void Proxy::Wake() { ::eventfd_write(wake_, 1); }

void Proxy::Cut(Clock::duration refusing) {
  {
    const std::lock_guard lock(mutex_);
    cut_ = true;
    refuse_until_ = Clock::now() + refusing;
  }
  Wake();
}

void Proxy::Delay(Clock::duration most, Clock::duration lasting) {
  const std::lock_guard lock(mutex_);
  delay_most_ = most;
  delay_until_ = Clock::now() + lasting;
}

void Proxy::Throttle(int bytes_per_second, Clock::duration lasting) {
  const std::lock_guard lock(mutex_);
  bytes_per_second_ = bytes_per_second;
  throttle_until_ = Clock::now() + lasting;
}

void Proxy::Calm() {
  {
    const std::lock_guard lock(mutex_);
    calm_ = true;
    refuse_until_ = delay_until_ = throttle_until_ = {};
  }
  Wake();
}

void Proxy::Accept() {
  const int end = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (end < 0) return;
  bool refuse = false;
  {
    const std::lock_guard lock(mutex_);
    refuse = Clock::now() < refuse_until_;
  }
  const int upstream =
      refuse ? -1 : ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (upstream < 0) return Abort(end);
  const int on = 1;
  for (const int fd : {end, upstream}) {
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  const sockaddr_in address = Loopback(upstream_port_);
  Connection& connection = connections_.emplace_back();
  connection.ends[0] = end;
  connection.ends[1] = upstream;
  if (::connect(upstream, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 &&
      errno != EINPROGRESS) {
    connection.broken = true;
  }
}

void Proxy::Read(Connection& connection, int end) {
  Way& way = connection.ways[end];
  std::string bytes(kPiece, '\0');
  const ssize_t got = ::read(connection.ends[end], bytes.data(), bytes.size());
  if (got < 0) {
    connection.broken = errno != EAGAIN && errno != EINTR;
    return;
  }
  if (got == 0) {
    way.over = true;
    return;
  }
  bytes.resize(static_cast<size_t>(got));
  const std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  Clock::time_point due = now;
  if (now < delay_until_) {
    const double share = std::uniform_real_distribution<double>(0, 1)(random_);
    due += std::chrono::duration_cast<Clock::duration>(delay_most_ * share);
  }
  due = std::max(due, way.last_due);
  if (now < throttle_until_) {
    due += std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(static_cast<double>(got) / bytes_per_second_));
  }
  way.last_due = due;
  way.bytes += bytes.size();
  way.waiting.push_back({due, std::move(bytes)});
}

void Proxy::Write(Connection& connection, int index) {
  Way& way = connection.ways[index];
  const int to = connection.ends[1 - index];
  while (!way.waiting.empty() && way.waiting.front().due <= Clock::now()) {
    std::string& bytes = way.waiting.front().bytes;
    const ssize_t wrote = ::send(to, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (wrote < 0) {
      if (errno != EAGAIN && errno != EINTR) connection.broken = true;
      return;
    }
    way.bytes -= static_cast<size_t>(wrote);
    bytes.erase(0, static_cast<size_t>(wrote));
    if (bytes.empty()) way.waiting.pop_front();
  }
  if (way.over && way.waiting.empty() && !std::exchange(way.passed, true)) {
    ::shutdown(to, SHUT_WR);
  }
}

void Proxy::Serve() {
  for (;;) {
    std::vector<pollfd> fds = {{.fd = wake_, .events = POLLIN, .revents = 0},
                               {.fd = listener_, .events = POLLIN, .revents = 0}};
    Clock::time_point next = Clock::now() + std::chrono::hours(1);
    for (const Connection& connection : connections_) {
      for (const int end : {0, 1}) {
        const Way& from = connection.ways[end];
        const Way& to = connection.ways[1 - end];
        pollfd entry = {.fd = connection.ends[end], .events = 0, .revents = 0};
        if (!connection.connecting && !from.over && from.bytes < kWaitingMax) {
          entry.events |= POLLIN;
        }
        if (!to.waiting.empty()) {
          if (to.waiting.front().due <= Clock::now()) {
            entry.events |= POLLOUT;
          } else {
            next = std::min(next, to.waiting.front().due);
          }
        }
        if (connection.connecting && end == 1) entry.events = POLLOUT;
        // Nothing to ask of it: a broken one would otherwise be reported again and again.
        if (entry.events == 0) entry.fd = -1;
        fds.push_back(entry);
      }
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now()).count();
    ::poll(fds.data(), fds.size(), static_cast<int>(std::max<int64_t>(left, 0)));
    eventfd_t ignored;
    ::eventfd_read(wake_, &ignored);
    bool cut = false, calm = false;
    {
      const std::lock_guard lock(mutex_);
      cut = std::exchange(cut_, false) || stopping_;
      calm = std::exchange(calm_, false);
    }
    size_t at = 2;
    for (Connection& connection : connections_) {
      const short events[2] = {fds[at].revents, fds[at + 1].revents};
      at += 2;
      if (connection.connecting) {
        if (events[1] == 0) continue;
        int error = 0;
        socklen_t size = sizeof(error);
        ::getsockopt(connection.ends[1], SOL_SOCKET, SO_ERROR, &error, &size);
        connection.connecting = false;
        connection.broken = error != 0 || JoinedWithItself(connection.ends[1]);
        continue;
      }
      for (const int end : {0, 1}) {
        if ((events[end] & (POLLIN | POLLHUP | POLLERR)) != 0 && !connection.ways[end].over) {
          Read(connection, end);
        }
        if (calm) {
          for (Piece& piece : connection.ways[end].waiting) piece.due = {};
          connection.ways[end].last_due = {};
        }
      }
      for (const int way : {0, 1}) Write(connection, way);
    }
    if ((fds[1].revents & POLLIN) != 0) Accept();
    connections_.remove_if([cut](const Connection& connection) {
      const bool done = connection.ways[0].passed && connection.ways[1].passed;
      if (!cut && !connection.broken && !done) return false;
      for (const int end : connection.ends) done ? void(::close(end)) : Abort(end);
      return true;
    });
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
  }
}

}  // namespace lemo::coordinator
