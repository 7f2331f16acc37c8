# Two parts. The first sector of a disk, which reads the program that follows (COUNT times SECTORS sectors) to 0x10000 and
# goes there in 64-bit mode, all memory below 1 GiB at its own address, AVX-512 and tiles switched on. And, with DATA, the
# beginning of the program, and its data.
#ifndef DATA
.code16
.globl boot
boot:
  cli
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movw $0x7c00, %sp
  movb %dl, drive
  inb $0x92, %al              # addresses above 1 MiB
  orb $2, %al
  outb %al, $0x92
1:
  movw $packet, %si           # some sectors after another, by their numbers
  movb $0x42, %ah
  movb drive, %dl
  int $0x13
  jc failed
  addw $(SECTORS * 512 / 16), segment
  addl $SECTORS, sector
  decw count
  jnz 1b
  cli
  movw $0x1000, %di           # pages of 2 MiB
  xorl %eax, %eax
  movw $0xC00, %cx
  cld
  rep stosl
  movl $0x2003, 0x1000
  movl $0x3003, 0x2000
  movw $0x3000, %di
  movl $0x83, %eax
  movw $512, %cx
2:
  movl %eax, (%di)
  addl $0x200000, %eax
  addw $8, %di
  decw %cx
  jnz 2b
  movl $0x1000, %eax
  movl %eax, %cr3
  movl $0x20, %eax            # PAE
  movl %eax, %cr4
  movl $0xC0000080, %ecx      # EFER.LME
  rdmsr
  orl $0x100, %eax
  wrmsr
  lgdt descriptors
  movl %cr0, %eax
  orl $0x80000001, %eax       # paging, protection
  movl %eax, %cr0
  ljmpl $8, $long_mode
failed:
  hlt
.code64
long_mode:
  movw $16, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movq $0x1f0000, %rsp
  movq %cr0, %rax
  andq $~4, %rax
  orq $0x22, %rax
  movq %rax, %cr0
  movq %cr4, %rax
  orq $0x40600, %rax          # OSFXSR, OSXMMEXCPT, OSXSAVE
  movq %rax, %cr4
  xorl %ecx, %ecx
  xorl %edx, %edx
  movl $0x600e7, %eax         # vectors, masks, tiles and their configuration
  xsetbv
  movq $0x10000, %rax
  jmp *%rax
.align 8
table: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
descriptors: .word 23
  .long table
drive: .byte 0
count: .word COUNT
.align 4
packet: .byte 16, 0
  .word SECTORS
  .word 0
segment: .word 0x1000
sector: .quad 1
.org 510
  .word 0xaa55
#else
.section .text.start
.globl _start
_start:
  call main
1:
  hlt
  jmp 1b
.section .rodata
.globl data
.align 64
data: .incbin "data.bin"
#endif
.section .note.GNU-stack, "", @progbits
