"""The original command line, on today's Lightning: `python main.py --data_dir D --gpus=0 --dataset=image_dataset …`."""

from clip_distill.original.command import main

if __name__ == "__main__":
    main()
