// A TCP proxy that a test can spoil: it cuts, refuses, delays and throttles.
#pragma once

#include <chrono>
#include <deque>
#include <list>
#include <mutex>
#include <random>
#include <string>
#include <thread>

namespace lemo::coordinator {

// Listens on a free port of 127.0.0.1 for as long as it lives and joins each connection with one of
// its own to the upstream. Order is kept whatever the delays. All methods are thread-safe.
class Proxy {
 public:
  using Clock = std::chrono::steady_clock;

  // `upstream`: HOST:PORT, of 127.0.0.1. Draws its delays from `seed`.
  Proxy(const std::string& upstream, unsigned seed);
  ~Proxy();
  Proxy(const Proxy&) = delete;
  Proxy& operator=(const Proxy&) = delete;

  const std::string& address() const { return address_; }

  // Ends all connections, and new ones at once for so long.
  void Cut(Clock::duration refusing);
  // For so long every piece of data waits a random time of up to `most` before it goes on.
  void Delay(Clock::duration most, Clock::duration lasting);
  // For so long each connection carries at most so many bytes a second each way.
  void Throttle(int bytes_per_second, Clock::duration lasting);
  // No more mischief; what waits goes on at once.
  void Calm();

 private:
  struct Piece {
    Clock::time_point due;
    std::string bytes;
  };
  // One way of a connection.
  struct Way {
    std::deque<Piece> waiting;
    size_t bytes = 0;  // in `waiting`
    Clock::time_point last_due{};
    bool over = false;    // the source has ended
    bool passed = false;  // and the destination knows
  };
  struct Connection {
    int ends[2] = {-1, -1};  // who dialled, and the upstream
    Way ways[2];             // from ends[i] to the other
    bool connecting = true;
    bool broken = false;
  };

  void Serve();
  void Wake();
  void Accept();
  void Read(Connection& connection, int end);
  void Write(Connection& connection, int way);

  int upstream_port_ = 0;
  std::string address_;
  int listener_ = -1;
  int wake_ = -1;
  std::thread thread_;
  std::list<Connection> connections_;  // the thread's

  std::mutex mutex_;
  std::mt19937 random_;
  bool stopping_ = false;
  bool cut_ = false;
  bool calm_ = false;
  Clock::time_point refuse_until_{};
  Clock::time_point delay_until_{};
  Clock::duration delay_most_{};
  Clock::time_point throttle_until_{};
  int bytes_per_second_ = 0;
};

}  // namespace lemo::coordinator
