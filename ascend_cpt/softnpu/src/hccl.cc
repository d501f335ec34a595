// libhccl between processes of this machine. A message is a file in shared memory, so a send never waits for its receiver.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <atomic>
#include <cstring>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include "internal.h"

using namespace softnpu;
static int fail(const std::string &t) { return record_error(t); }
static bool tracing() { return is_tracing(); }

struct Comm {
  std::string id;
  uint32_t rank, size;
  std::mutex lock;
  std::map<uint32_t, uint64_t> sent, received;
};
struct SendRecvItem { int kind; void *buf; uint64_t count; int dtype; uint32_t remote; };
static const int kTypes[] = {I8, I16, I32, F16, F32, I64, U64, U8, U16, U32, F64, BF16};
static size_t bytes_of(int t) { return item_bytes(kTypes[t]); }

static std::string folder() {
  static std::string f = [] { const char *e = getenv("SOFTNPU_SHM"); std::string s = e ? e : "/dev/shm/softnpu"; mkdir(s.c_str(), 0700); return s; }();
  return f;
}
static void log_op(const char *what, Comm *c, uint64_t n, int t) {
  if (tracing()) fprintf(stderr, "[softnpu] run %s %s rank %u/%u count %lu type %d\n", what, c->id.c_str(), c->rank, c->size, (unsigned long)n, t);
}
static std::string path_of(Comm *c, uint32_t from, uint32_t to, uint64_t k) {
  return folder() + "/" + c->id + "." + std::to_string(from) + "." + std::to_string(to) + "." + std::to_string(k);
}
static void send_to(Comm *c, uint32_t to, const void *data, size_t n) {
  uint64_t k; { std::lock_guard<std::mutex> g(c->lock); k = c->sent[to]++; }
  std::string path = path_of(c, c->rank, to, k), partial = path + "~";
  int fd = open(partial.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
  for (size_t done = 0; done < n;) {
    ssize_t w = write(fd, (const char *)data + done, n - done);
    if (w <= 0) { fail("cannot write " + partial); break; }
    done += w;
  }
  close(fd);
  rename(partial.c_str(), path.c_str());
}
static int receive_from(Comm *c, uint32_t from, void *data, size_t n) {
  uint64_t k; { std::lock_guard<std::mutex> g(c->lock); k = c->received[from]++; }
  std::string path = path_of(c, from, c->rank, k);
  int fd, waited_us = 0, pause = 50;
  static const long limit = getenv("SOFTNPU_TIMEOUT_S") ? atol(getenv("SOFTNPU_TIMEOUT_S")) : 300;
  long total = 0;
  while ((fd = open(path.c_str(), O_RDONLY)) < 0) {
    usleep(pause);
    total += pause;
    if (pause < 2000) pause += 50;
    if (total / 1000000 > limit) return fail("nothing came from rank " + std::to_string(from) + " of " + c->id + " within " + std::to_string(limit) + " s");
  }
  size_t done = 0;
  while (done < n) {
    ssize_t r = read(fd, (char *)data + done, n - done);
    if (r <= 0) break;
    done += r;
  }
  char more;
  bool longer = read(fd, &more, 1) > 0;
  close(fd);
  unlink(path.c_str());
  if (done < n || longer) return fail("rank " + std::to_string(from) + " of " + c->id + " sent another size than the " + std::to_string(n) + " bytes expected");
  return 0;
}
// Every rank's n bytes, in the order of ranks.
static int gather(Comm *c, const void *mine, size_t n, std::string &all) {
  all.resize(n * c->size);
  for (uint32_t r = 0; r < c->size; r++) if (r != c->rank) send_to(c, r, mine, n);
  memcpy(&all[c->rank * n], mine, n);
  for (uint32_t r = 0; r < c->size; r++) if (r != c->rank) if (int e = receive_from(c, r, &all[r * n], n)) return e;
  return 0;
}
static void combine(char *to, const char *parts, size_t stride, uint32_t ranks, uint64_t n, int t, int op) {
  int d = kTypes[t];
  size_t b = item_bytes(d);
  for (uint64_t i = 0; i < n; i++) {
    double x = load_item(parts + i * b, d);
    for (uint32_t r = 1; r < ranks; r++) {
      double y = load_item(parts + r * stride + i * b, d);
      x = op == 0 ? x + y : op == 1 ? x * y : op == 2 ? std::fmax(x, y) : std::fmin(x, y);
    }
    store_item(to + i * b, d, x);
  }
}
#pragma GCC visibility push(default)
extern "C" {
int HcclGetRootInfo(char *info) {
  static std::atomic<int> count{0};
  memset(info, 0, 4108);
  snprintf(info, 128, "c%d-%d-%ld", (int)getpid(), count++, (long)time(nullptr));
  return 0;
}
int HcclCommInitRootInfoConfig(uint32_t n, const char *info, uint32_t rank, const void *, Comm **c) {
  *c = new Comm;
  (*c)->id = info;
  (*c)->rank = rank;
  (*c)->size = n;
  log_op("HcclCommInit", *c, 0, 0);
  // MindSpore withdraws the root's name when the root returns: nobody may return before all have come.
  char here = 1;
  std::string all;
  return gather(*c, &here, 1, all);
}
int HcclCommInitRootInfo(uint32_t n, const char *info, uint32_t rank, Comm **c) { return HcclCommInitRootInfoConfig(n, info, rank, nullptr, c); }
int HcclCommDestroy(Comm *) { return 0; }
uint32_t HcclGetCommConfigCapability() { return 3; }
int HcclGetCommName(Comm *c, char *name) { snprintf(name, 128, "%s", c->id.c_str()); return 0; }
int HcclGetRankId(Comm *c, uint32_t *r) { *r = c->rank; return 0; }
int HcclGetRankSize(Comm *c, uint32_t *n) { *n = c->size; return 0; }
int HcclGetCommAsyncError(Comm *, int *e) { *e = 0; return 0; }
const char *HcclGetErrorString(int) { return "softnpu"; }
int HcclAllReduce(const void *s, void *r, uint64_t n, int t, int op, Comm *c, void *) {
  log_op("AllReduce", c, n, t);
  std::string all;
  if (int e = gather(c, s, n * bytes_of(t), all)) return e;
  combine((char *)r, all.data(), n * bytes_of(t), c->size, n, t, op);
  return 0;
}
int HcclAllGather(const void *s, void *r, uint64_t n, int t, Comm *c, void *) {
  log_op("AllGather", c, n, t);
  std::string all;
  if (int e = gather(c, s, n * bytes_of(t), all)) return e;
  memcpy(r, all.data(), all.size());
  return 0;
}
int HcclReduceScatter(const void *s, void *r, uint64_t n, int t, int op, Comm *c, void *) {
  log_op("ReduceScatter", c, n, t);
  size_t b = n * bytes_of(t);
  std::string parts(b * c->size, 0);
  for (uint32_t k = 0; k < c->size; k++) if (k != c->rank) send_to(c, k, (const char *)s + k * b, b);
  memcpy(&parts[c->rank * b], (const char *)s + c->rank * b, b);
  for (uint32_t k = 0; k < c->size; k++) if (k != c->rank) if (int e = receive_from(c, k, &parts[k * b], b)) return e;
  combine((char *)r, parts.data(), b, c->size, n, t, op);
  return 0;
}
int HcclBroadcast(void *buf, uint64_t n, int t, uint32_t root, Comm *c, void *) {
  log_op("Broadcast", c, n, t);
  if (c->rank != root) return receive_from(c, root, buf, n * bytes_of(t));
  for (uint32_t k = 0; k < c->size; k++) if (k != root) send_to(c, k, buf, n * bytes_of(t));
  return 0;
}
int HcclReduce(const void *s, void *r, uint64_t n, int t, int op, uint32_t root, Comm *c, void *) {
  log_op("Reduce", c, n, t);
  std::string all;
  if (int e = gather(c, s, n * bytes_of(t), all)) return e;
  if (c->rank == root) combine((char *)r, all.data(), n * bytes_of(t), c->size, n, t, op);
  return 0;
}
int HcclScatter(const void *s, void *r, uint64_t n, int t, uint32_t root, Comm *c, void *) {
  size_t b = n * bytes_of(t);
  if (c->rank != root) return receive_from(c, root, r, b);
  for (uint32_t k = 0; k < c->size; k++) if (k != root) send_to(c, k, (const char *)s + k * b, b);
  memmove(r, (const char *)s + root * b, b);
  return 0;
}
int HcclSend(const void *s, uint64_t n, int t, uint32_t to, Comm *c, void *) { log_op("Send", c, n, t); send_to(c, to, s, n * bytes_of(t)); return 0; }
int HcclRecv(void *r, uint64_t n, int t, uint32_t from, Comm *c, void *) { log_op("Recv", c, n, t); return receive_from(c, from, r, n * bytes_of(t)); }
int HcclBatchSendRecv(SendRecvItem *items, uint32_t n, Comm *c, void *) {
  for (uint32_t i = 0; i < n; i++) if (items[i].kind == 0) send_to(c, items[i].remote, items[i].buf, items[i].count * bytes_of(items[i].dtype));
  for (uint32_t i = 0; i < n; i++) if (items[i].kind == 1) if (int e = receive_from(c, items[i].remote, items[i].buf, items[i].count * bytes_of(items[i].dtype))) return e;
  return 0;
}
int HcclAlltoAllV(const void *s, const uint64_t *sn, const uint64_t *sd, int st, void *r, const uint64_t *rn, const uint64_t *rd, int rt, Comm *c, void *) {
  log_op("AlltoAllV", c, sn[0], st);
  size_t a = bytes_of(st), b = bytes_of(rt);
  for (uint32_t k = 0; k < c->size; k++) if (k != c->rank) send_to(c, k, (const char *)s + sd[k] * a, sn[k] * a);
  memmove((char *)r + rd[c->rank] * b, (const char *)s + sd[c->rank] * a, sn[c->rank] * a);
  for (uint32_t k = 0; k < c->size; k++) if (k != c->rank) if (int e = receive_from(c, k, (char *)r + rd[k] * b, rn[k] * b)) return e;
  return 0;
}
int HcclAlltoAll(const void *s, uint64_t sn, int st, void *r, uint64_t rn, int rt, Comm *c, void *stream) {
  std::vector<uint64_t> a(c->size, sn), ad, b(c->size, rn), bd;
  for (uint32_t k = 0; k < c->size; k++) ad.push_back(k * sn), bd.push_back(k * rn);
  return HcclAlltoAllV(s, a.data(), ad.data(), st, r, b.data(), bd.data(), rt, c, stream);
}
int HcclBarrier(Comm *c, void *) {
  char x = 0;
  std::string all;
  return gather(c, &x, 1, all);
}
}
