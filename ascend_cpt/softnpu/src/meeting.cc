// How the ranks of a communicator find each other: rank 0 listens on a socket of the abstract namespace and hands the
// shared memory to everyone who comes.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include "group.h"

namespace softnpu {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kBacklog = 256;
constexpr useconds_t kRetryUs = 20000;

struct Greeting {
  uint32_t rank, size;
};

class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket &&other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket &operator=(Socket &&other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Listeners opened by HcclGetRootInfo, until rank 0 of this process joins.
struct Listeners {
  std::mutex lock;
  std::map<std::string, Socket> by_name;
};
Listeners &listeners() {
  static auto *only = new Listeners;
  return *only;
}

sockaddr_un make_address(const std::string &name, socklen_t &length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // A leading zero byte: the abstract namespace.
  size_t used = std::min(name.size(), sizeof address.sun_path - 1);
  std::memcpy(address.sun_path + 1, name.data(), used);
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + used);
  return address;
}

Socket make_socket() {
  Socket made(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (made.fd() < 0) throw Error(std::string("socket: ") + strerror(errno));
  return made;
}

Socket listen_at(const std::string &name) {
  Socket listener = make_socket();
  socklen_t length;
  sockaddr_un address = make_address(name, length);
  if (bind(listener.fd(), reinterpret_cast<sockaddr *>(&address), length) || listen(listener.fd(), kBacklog)) {
    throw Error("socket " + name + ": " + strerror(errno));
  }
  return listener;
}

int remaining_ms(Clock::time_point deadline) {
  auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return left > 0 ? static_cast<int>(left) : 0;
}

bool is_readable(int fd, Clock::time_point deadline) {
  pollfd wanted{fd, POLLIN, 0};
  int ready;
  do ready = poll(&wanted, 1, remaining_ms(deadline));
  while (ready < 0 && errno == EINTR);
  return ready > 0;
}

void check_user(int fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) || peer.uid != getuid()) {
    throw Error("a process of another user connected to the socket");
  }
}

template <class T> void write_to(int fd, const T &value, const std::string &who) {
  if (send(fd, &value, sizeof value, MSG_NOSIGNAL) != sizeof value) throw Error(who + " exited while the group was being created");
}

template <class T> T read_from(int fd, Clock::time_point deadline, const std::string &who) {
  T value;
  if (!is_readable(fd, deadline)) throw Error(who + " did not respond in time while the group was being created");
  if (recv(fd, &value, sizeof value, MSG_WAITALL) != sizeof value) throw Error(who + " exited while the group was being created");
  return value;
}

void send_descriptor(int socket_fd, int fd, const std::string &who) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr *head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(head), &fd, sizeof fd);
  if (sendmsg(socket_fd, &message, MSG_NOSIGNAL) != 1) throw Error(who + " exited while the group was being created");
}

int receive_descriptor(int socket_fd, Clock::time_point deadline) {
  if (!is_readable(socket_fd, deadline)) throw Error("timed out waiting for rank 0, which is waiting for ranks that did not connect");
  char byte;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr *head = nullptr;
  if (recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC) == 1) head = CMSG_FIRSTHDR(&message);
  if (!head || head->cmsg_type != SCM_RIGHTS) throw Error("rank 0 exited while the group was being created");
  int fd;
  std::memcpy(&fd, CMSG_DATA(head), sizeof fd);
  return fd;
}

std::string rank_text(uint32_t rank) { return "rank " + std::to_string(rank); }

}  // namespace

int read_seconds(const char *variable, int otherwise) {
  const char *text = getenv(variable);
  int value = text ? atoi(text) : 0;
  return value > 0 ? value : otherwise;
}

std::string open_meeting_point() {
  uint64_t random;
  if (getrandom(&random, sizeof random, 0) != sizeof random) throw Error("cannot get random numbers");
  char name[64];
  snprintf(name, sizeof name, "ascend_cpt-softnpu-%d-%016lx", static_cast<int>(getpid()), static_cast<unsigned long>(random));
  Socket listener = listen_at(name);
  std::lock_guard<std::mutex> guard(listeners().lock);
  listeners().by_name.emplace(name, std::move(listener));
  return name;
}

// The making of one group; the sockets close with it.
class Meeting {
 public:
  explicit Meeting(Group &group)
      : group_(group), deadline_(Clock::now() + std::chrono::seconds(read_seconds("HCCL_CONNECT_TIMEOUT", 600))) {}

  void host() {
    Socket listener;
    {
      std::lock_guard<std::mutex> guard(listeners().lock);
      auto found = listeners().by_name.find(group_.name_);
      if (found != listeners().by_name.end()) {
        listener = std::move(found->second);
        listeners().by_name.erase(found);
      }
    }
    if (listener.fd() < 0) listener = listen_at(group_.name_);
    std::vector<Socket> guests(group_.size_);
    for (uint32_t come = 1; come < group_.size_; come++) admit(listener, guests);
    int fd = memfd_create("ascend_cpt-softnpu", MFD_CLOEXEC);
    if (fd < 0) throw Error(std::string("shared memory: ") + strerror(errno));
    group_.map(fd);
    group_.lock_own_byte();
    // Everybody holds a lock before anybody looks for one.
    for (uint32_t r = 1; r < group_.size_; r++) send_descriptor(guests[r].fd(), fd, rank_text(r));
    for (uint32_t r = 1; r < group_.size_; r++) read_from<char>(guests[r].fd(), deadline_, rank_text(r));
    for (uint32_t r = 1; r < group_.size_; r++) write_to(guests[r].fd(), char{1}, rank_text(r));
  }

  void visit() {
    Socket host = connect();
    write_to(host.fd(), Greeting{group_.rank_, group_.size_}, "rank 0");
    group_.map(receive_descriptor(host.fd(), deadline_));
    group_.lock_own_byte();
    write_to(host.fd(), char{1}, "rank 0");
    read_from<char>(host.fd(), deadline_, "rank 0");
  }

 private:
  void admit(const Socket &listener, std::vector<Socket> &guests) {
    if (!is_readable(listener.fd(), deadline_)) {
      std::string missing;
      for (uint32_t r = 1; r < group_.size_; r++) {
        if (guests[r].fd() < 0) missing += " " + std::to_string(r);
      }
      throw Error("of the " + std::to_string(group_.size_) + " ranks of " + group_.label_ + ", these did not connect in time:" +
                  missing + " (HCCL_CONNECT_TIMEOUT sets the limit)");
    }
    Socket guest(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    check_user(guest.fd());
    auto greeting = read_from<Greeting>(guest.fd(), deadline_, "a rank");
    if (greeting.size != group_.size_ || greeting.rank >= group_.size_ || guests[greeting.rank].fd() >= 0) {
      throw Error("rank " + std::to_string(greeting.rank) + " of " + std::to_string(greeting.size) + " connected to " +
                  group_.label_ + " of " + std::to_string(group_.size_) + " ranks, or connected twice");
    }
    guests[greeting.rank] = std::move(guest);
  }

  Socket connect() {
    socklen_t length;
    sockaddr_un address = make_address(group_.name_, length);
    while (true) {
      Socket tried = make_socket();
      if (!::connect(tried.fd(), reinterpret_cast<sockaddr *>(&address), length)) {
        check_user(tried.fd());
        return tried;
      }
      if (!remaining_ms(deadline_)) {
        throw Error("rank 0 of " + group_.label_ + " did not connect in time (HCCL_CONNECT_TIMEOUT sets the limit)");
      }
      usleep(kRetryUs);
    }
  }

  Group &group_;
  Clock::time_point deadline_;
};

Group *Group::join(const std::string &name, const std::string &label, uint32_t rank, uint32_t size) {
  if (!size || size > kMaxRanks || rank >= size) {
    throw Error("rank " + std::to_string(rank) + " of " + std::to_string(size) + ": the software NPU connects up to " +
                std::to_string(kMaxRanks) + " ranks");
  }
  std::unique_ptr<Group> group(new Group);
  group->name_ = name;
  group->label_ = label.empty() ? "a communicator of " + std::to_string(size) + " ranks" : label;
  group->rank_ = rank;
  group->size_ = size;
  Meeting meeting(*group);
  if (rank == 0) meeting.host();
  else meeting.visit();
  return group.release();
}

}  // namespace softnpu
