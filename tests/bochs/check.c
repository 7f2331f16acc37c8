/* Stores the factors of each case, multiplies them, and compares with what check.py expects; see there. */
#include "symbols.h"
#include "cases.h"

enum { MOST = 1 << 16, UNTOUCHED = 0x41414141, BEYOND = 5, FROM_ZERO = 0, FROM_OUTPUT = 1, FROM_BIAS = 2, STACKED = 16 };
typedef unsigned bits;
typedef float array[MOST] __attribute__((aligned(64)));

extern char data[];
static array a_high, a_low, b_high, b_low, a_turned, b_turned, c, scratch;
static long sizes[6] = {512, 131072, 1048576, 262144, 4, 8};

static void put(char x) { __asm__ volatile("outb %0, $0xe9" ::"a"(x)); }

static void text(const char *s) {
  while (*s) put(*s++);
}

static void number(long x) {
  char digits[24];
  int i = 0;
  do digits[i++] = '0' + x % 10;
  while (x /= 10);
  while (i) put(digits[--i]);
  put(' ');
}

static void hexadecimal(bits x) {
  for (int i = 28; i >= 0; i -= 4) put("0123456789abcdef"[x >> i & 15]);
  put(' ');
}

static bits *as_bits(float *p) { return (bits *)p; }

static float *turned(float *x, long rows, long columns, float *out) {
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < columns; j++) as_bits(out)[j * rows + i] = as_bits(x)[i * columns + j];
  return out;
}

static int is_nan(bits x) { return (x & 0x7fffffff) > 0x7f800000; }

/* formats.leading_dimension */
static long leading(long columns) { return 16 * (((columns + 31) / 32) | 1); }

/* XINUSE of tiles and their configuration. */
static bits tiles(void) {
  bits low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  return low & 0x60000;
}

static long differing(long at) {
  const long *of = cases[at];
  long unit = of[0], product = of[1], m = of[2], n = of[3], k = of[4], products = of[5], ldc = n + BEYOND;
  float *a = (float *)(data + of[6]), *b = (float *)(data + of[7]), *bias = (float *)(data + of[8]);
  bits *before = (bits *)(data + of[9]), *wanted = (bits *)(data + of[10]);
  float *low_a = products > 1 ? a_low : 0, *low_b = products > 1 ? b_low : 0;
  for (long i = 0; i < MOST; i++) {
    as_bits(a_high)[i] = as_bits(a_low)[i] = as_bits(b_high)[i] = as_bits(b_low)[i] = 0x7fc17fc1; /* pairs of NaN */
    as_bits(c)[i] = UNTOUCHED;
  }
  for (long i = 0; i < m; i++)
    for (long j = 0; j < n; j++) as_bits(c)[i * ldc + j] = product == 2 ? before[i * n + j] : 0x7fc00000;
  long lda = leading(product == 2 ? m : k), ldb = product == 2 ? leading(n) : STACKED;
  if (product == 2)
    store_2(k, m, turned(a, m, k, a_turned), m, a_high, low_a, lda);
  else
    store_1(m, k, a, k, a_high, low_a, lda);
  if (product == 1)
    store_5(n, k, turned(b, k, n, b_turned), k, b_high, low_b, ldb);
  else
    store_3(k, n, b, n, b_high, low_b, ldb);
  for (long part = 0; part < products; part++) {
    float *left = part == 2 ? a_low : a_high, *right = part == 1 ? b_low : b_high;
    long row = product == 2 ? 1 : lda, term = product == 2 ? lda : 1;
    long origin = part || product == 2 ? FROM_OUTPUT : product == 0 ? FROM_BIAS : FROM_ZERO;
    (unit ? gemm_1 : gemm_0)(
        m, n, k, left, row, term, right, ldb, product == 1, 0, 0, 0, origin, bias, c, ldc, scratch, sizes, 0, 0, 0, 0.0);
    if (tiles()) text("tiles are in use after a product\n");
  }
  long count = 0;
  for (long i = 0; i < m; i++)
    for (long j = 0; j < ldc; j++) {
      bits found = as_bits(c)[i * ldc + j], right = j < n ? wanted[i * n + j] : UNTOUCHED;
      if (found != right && !(is_nan(found) && is_nan(right)) && !count++) {
        text("case unit, product, m, n, k, products; row, column, found, expected: ");
        for (int field = 0; field < 6; field++) number(of[field]);
        number(i), number(j), hexadecimal(found), hexadecimal(right), put('\n');
      }
    }
  return count;
}

int main(void) {
  long differ = 0, count = sizeof cases / sizeof cases[0];
  for (long at = 0; at < count; at++) differ += differing(at) != 0;
  static unsigned char configuration[64] __attribute__((aligned(64))) = {[0] = 1, [16] = 64, [48] = 16};
  __asm__ volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0x07" ::"D"(configuration)); /* ldtilecfg (%rdi) */
  text(tiles() == 0x20000 ? "tiles are seen in use when configured\n" : "tiles are not seen in use when configured\n");
  text("products: "), number(count), text("of which "), number(differ), text("differ\n");
  return 0;
}
