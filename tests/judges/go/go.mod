module rhizome.test/judge

go 1.19
