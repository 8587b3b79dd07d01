from timet.data.verify import main

main()
